"""Which column of a file says what: names in several languages, and how they are recognised."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from recutils.data.schema import StoreError

# The field, then names of it as shops write them, the surest first: lower case, without accents, blanks and signs.
SYNONYMS: dict[str, str] = {
    "basket": "basketid basket invoice invoiceno invoiceid invoicenumber receipt receiptid receiptno receiptnumber "
    "orderid orderno ordernumber order transactionid transactionno transactionnumber transaction ticket ticketid "
    "bon bonnr bonnummer beleg belegnr belegnummer rechnung rechnungsnr rechnungsnummer kassenbon auftrag auftragsnr "
    "bestellnummer bestellung facture numfacture numerofacture nofacture commande numcommande numerocommande pedido "
    "numeropedido idpedido factura numfactura numerofactura scontrino numeroscontrino ordine numeroordine fattura "
    "notafiscal cupom paragon bestelling 订单 订单号 订单编号 订单id 小票 小票号 单号 交易号 流水号 注文番号 注文id "
    "伝票番号 чек номерчека заказ номерзаказа",
    "household": "householdid household customerid customerno customernumber customer custid clientid client memberid "
    "member membership loyaltycard loyaltyid loyalty cardno cardid card userid user shopperid shopper buyer account "
    "visitorid kundennr kundennummer kundenid kunde kdnr klantnummer klant clienteid idcliente cliente codicecliente "
    "numeroclient codeclient socio 客户 客户编号 客户id 会员 会员号 会员编号 会员id 顾客 用户 用户id 顧客番号 顧客id "
    "会員番号 клиент покупатель",
    "item": "itemid sku stockcode productid itemno itemnumber itemcode productcode productno articleid articleno "
    "articlenumber article ean upc gtin barcode plu asin item product artikelnr artikelnummer artikelid artnr artikel "
    "produktnr produktid produkt codeproduit idproduit reference ref codearticle produit codigoproducto idproducto "
    "codigo producto codiceprodotto codicearticolo prodotto codigoproduto produto 商品编号 商品编码 商品id 商品代码 "
    "货号 条码 产品编号 商品 产品 商品コード 商品番号 артикул товар",
    "name": "description productname itemname articlename productdescription itemdescription name title itemtitle "
    "bezeichnung artikelbezeichnung artikelname produktname beschreibung warenbezeichnung designation libelle "
    "nomproduit descripcion nombreproducto nombre descrizione nome descricao omschrijving 商品名称 商品名 品名 "
    "产品名称 名称 商品描述 наименование название nazwa",
    "group": "department category productcategory productgroup dept group class productline family subcategory "
    "warengruppe abteilung kategorie rayon categorie famille seccion categoria reparto 类别 分类 品类 部门 商品类别 "
    "カテゴリ категория",
    "time": "timestamp datetime invoicedate orderdate transactiondate purchasedate saledate salesdate createdat date "
    "day zeitpunkt datum kaufdatum belegdatum bestelldatum rechnungsdatum dateachat datecommande datefacture "
    "datevente fechahora fecha fechapedido fechaventa dataora dataordine data datavenda 时间 日期 下单时间 交易时间 "
    "购买时间 销售日期 订单日期 交易日期 购买日期 日時 購入日 購入日時 дата time",
    "clock": "time timeofday transactiontime ordertime hour uhrzeit zeit heure hora ora 时刻 时间 время",
    "quantity": "quantity qty units quantitysold itemsqty count menge anzahl stuck stueck quantite qte cantidad "
    "quantita quantidade aantal 数量 件数 购买数量 個数 количество ilosc",
    "price": "price unitprice itemprice priceperunit preis einzelpreis stuckpreis stueckpreis vkpreis prixunitaire "
    "prix preciounitario precio prezzo prezzounitario preco precounitario prijs 单价 价格 単価 価格 цена cena",
    "total": "total linetotal salesvalue amount lineamount revenue sales umsatz betrag gesamtpreis montant importe "
    "importo valor bedrag 金额 总价 销售额 小计 金額 сумма",
    "promotion": "promotion promo onpromotion onoffer offer discount discountamount aktion rabatt remise promocion "
    "descuento sconto promozione desconto 促销 折扣 优惠",
    "status": "status orderstatus storno cancelled canceled returned statut estado stato 状态 订单状态",
    "store": "storeid store shopid shop branch filiale markt magasin tienda negozio loja 门店 店铺",
    "items": "items products basketitems contents articles artikelliste produits productos prodotti 商品列表",
}
FIELDS = list(SYNONYMS)


def plain(name: str) -> str:
    """A column's name without case, accents, blanks and signs: "Invoice No." is "invoiceno"."""
    text = unicodedata.normalize("NFKC", str(name)).casefold()
    parts = unicodedata.normalize("NFD", text)
    text = unicodedata.normalize("NFC", "".join(c for c in parts if not "\u0300" <= c <= "\u036f"))
    return re.sub(r"[\W_]+", "", text)


def guess_columns(columns: Iterable[str], named: Mapping[str, str] | None = None) -> dict[str, str]:
    """The column of each field that is found among `columns`; `named` comes first. No column serves two fields.

    Raises StoreError for a field that does not exist. A named column that this file lacks is no error: another of the
    shop's files may hold it.
    """
    columns, named = list(columns), dict(named or {})
    if unknown := set(named) - set(FIELDS):
        raise StoreError(f"There is no field {', '.join(sorted(unknown))}; the fields are {', '.join(FIELDS)}.")
    found = {field: column for field, column in named.items() if column in columns}
    free = {plain(c): c for c in reversed(columns) if c not in found.values()}
    for field, words in SYNONYMS.items():
        match = next((word for word in words.split() if word in free), None)
        if match is not None and field not in found:
            found[field] = free.pop(match)
    return found


def parse_named(text: str) -> dict[str, str]:
    """`item=sku,basket=till no` as a dict. Raises StoreError where it is written otherwise."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not (field.strip() and sign and column.strip()) for field, sign, column in pairs):
        raise StoreError(f"--columns {text!r} is not understood; write it as item=sku,basket=receipt.")
    return {field.strip(): column.strip() for field, _, column in pairs}
