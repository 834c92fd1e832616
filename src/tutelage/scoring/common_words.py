"""Function words of five languages, which every text of the language is full of, whatever it is about.

Left out are those that are common English words too ("no", "me", "die", "plus", "come", "do"), so that English text has
next to none.
"""

_WORDS = {
    "french": """
        au aussi aux avait avec avoir ce ces cet cette ceux chez dans de depuis des donc dont du elle elles encore
        est et eux fait il ils je jusque la le les leur leurs lui mais même moi mon ne nos notre nous ont ou où par
        parce pas peu peut pour quand que quel quelle qui sans ses si sont sous sur toi tous tout toute très tu un une
        votre vous été être
    """,
    "german": """
        aber alle als auch auf aus bei bis da dann das dass dem den der des dich dir doch du durch ein eine einem einen
        einer eines er es für gegen haben hatte ich ihm ihn ihr ihre im ist ja jede jetzt kann kein keine mehr mein mich
        mir mit muss nach nicht noch nur ob oder ohne schon sehr sein seine sich sie sind um und uns unter vom von vor
        weil wenn werden wie wieder wir wird wurde zu zum zur zwischen über
    """,
    "italian": """
        adesso agli ai al alla alle allo altro anche ancora aveva avere che chi ci con cosa così da dai dal dalla degli
        dei del della delle di dopo e ed essere fra già gli hanno ho il io la le lei lo loro lui ma mai mi mia mio molto
        nei nel nella noi non nostro o ogni perché poi prima quando quella quello questa questo quindi se senza si sono
        sua sul sulla suo ti tra tu tutti tutto un una uno voi è più
    """,
    "portuguese": """
        ainda ao aos até cada com como da das de dela dele depois dos e ela elas ele eles em entre essa esse esta
        estava este está eu foi foram há isso isto já lhe mais mas mesmo meu minha muito na nas nem nos nossa nosso não
        nós o onde os ou para pela pelo por porque quando que quem sem ser seu sobre sua são só também tem tinha todos
        tudo um uma você à às é
    """,
    "spanish": """
        al algo ante antes aunque aquí así cada casi como con cuando de del desde donde dos durante el ella ellos en
        entonces entre esa ese eso esta estaba este esto está fue hasta hay la las le les lo los mi mientras mucho
        muy más ni nos nosotros nuestro o otra otro para pero poco por porque pues que quien se ser si siempre sobre su
        sus también tan tiene todo todos tu un una uno y ya yo él
    """,
}
COMMON_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
"""Language to its words, in lower case."""
