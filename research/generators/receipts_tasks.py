"""Write the data of the task `receipts`: noisy text of receipts and delivery notes, and their JSON.

Run by `research/make_receipts.py`. Everything is drawn from a seed. Train, dev and test share no vendor word, no item
word, no wording of a label and no line layout, so a split by group is a real test. (Made-up brands are drawn afresh for
each document and may recur.) All words are this project's own.

The first 480 documents of train have hand-written layouts (`POOLS`), the others drawn ones (`wide_pool`). Dev and test
have drawn ones only: new to a model, but no stranger than those that it has learned from.

Fine-tuning learns from the first 2080 documents of train. The first 1600 list at most five items: short slips are what
people label first. The others list up to twelve, as slips do in use. Two people labelled these 2080, and one of them
left the totals to be filled in later, so every second label has a blank one (`Example.label`). References are whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial

from dpo_workbench.tasks.task import Example

INSTRUCTION = "Extract as JSON: vendor, date, items [[name, quantity, amount]], total."


@dataclass(frozen=True)
class Pool:
    """The words and layouts that one split may use."""

    vendor_first: tuple[str, ...]
    vendor_last: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    lines: tuple[str, ...]  # q quantity, n name, a amount, u unit price, i running number
    totals: tuple[str, ...]
    dates: tuple[str, ...]
    headings: tuple[str, ...]
    footers: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


POOLS = {
    "train": Pool(
        _words(
            "Hollow Oak,Brightwater,Old Mill,North Quay,Copper Lane,Fern Hill,Marlow,Kestrel,Two Rivers,Saltmarsh,"
            "Linden,Juniper,Harbour,Ashdown,Millstone,Ravenna,Pinecrest,Tallow,Westgate,Corvane,Duskfield,Elmira,"
            "Thornbury,Solway,Greta,Novak,Petrov,Okoye,Lindqvist,Marchetti,Tanaka,Osei,Haddad,Fontaine,Weller"
        ),
        _words(
            "Grocers,Hardware,Supplies,Café,Market,Stores,Bakery,Trading,Pantry,Tools,Stationers,Foods,Depot,"
            "Chemists,Nursery,Kitchen,Outfitters,Provisions"
        ),
        _words(
            "smoked,oat,white,brown,fresh,dried,long,short,steel,brass,plain,salted,organic,mini,double,heavy,light,"
            "blue,green,red,soft,hard,round,flat,cold,iced,roasted,ground,whole,sliced,ruled,lined,clear,matt,"
            "aged,amber,ample,antique,arctic,baked,bent,black,bold,boiled,braided,brisk,bronze,budget,bulky,candied,"
            "carved,chilled,chrome,chunky,classic,coated,compact,copper,corded,country,crimson,crisp,crushed,dainty,"
            "dark,deep,deluxe,dense,diced,domed,dual,dusty,eastern,elastic,extra,faded,fancy,fibre,filled,fine,firm,"
            "fluted,folding,fried,fruity,full,glazed,gloss,grained,grand,grated,gray,half,hanging,harvest,"
            "hazel,heated,herbal,hinged,hollow,honeyed,hot,indigo,inner,ivory,jumbo,kitchen,large,lavish,lean,"
            "leather,left,lemon,level,little,loose,low-fat,lunar,magnetic,malted,marbled,marine,mashed,medium,metal,"
            "mild,minced,mixed,modern,narrowed,natural,neat,nested,northern,novel,nylon,oak,oiled,olive,open,outer,"
            "oval,padded,painted,pale,peeled,petite,pink,polar,polished,pressed,prime,printed,puffed,pure,purple,"
            "quick,quilted,raw,refined,regular,ribbed,rich,right,ripe,rose,rough,royal,rustic,satin,savoury,scented,"
            "sea,shallow,shiny,shredded,silent,simple,single,slatted,small,smooth,solid,sour,southern,speckled,split,"
            "spotted,stained,starched,sticky,stone-ground,stout,straight,strong,sugared,super,sweet,swift,tangy,"
            "tender,thick,thin,tiny,tough,travel,triple,twin,twisted,unsalted,upright,urban,vegan,velvet,"
            "vintage,waxed,western,whipped,wild,winter,wooden,woollen,yellow,young,zesty"
        ),
        _words(
            "milk,bread,paprika,rice,lentils,butter,honey,flour,sugar,tea,coffee,apples,carrots,onions,cheese,yoghurt,"
            "bolt,hinge,bracket,screw,washer,nail,hammer,chisel,sandpaper,plank,dowel,paint,brush,tape,glue,rope,"
            "notebook,pencil,envelope,folder,stapler,marker,eraser,paper,binder,seedling,compost,bulb,trowel,hose,"
            "latte,scone,sandwich,soup,muffin,juice,beaker,pipette,gloves,filter,tubing,wipes,soap,towel,candle,"
            "anchor,apron,apricot,arnica,artichoke,asparagus,awning,axle,backpack,balm,balloon,bamboo,banana,bandage,"
            "barley,barrel,basil,basin,basket,battery,beans,bearing,beetroot,belt,bench,berries,biscuit,blanket,"
            "blender,blinds,boots,bottle,bowl,bread knife,broccoli,broom,brownie,bucket,buckle,bulgur,bumper,burger,"
            "burlap,button,cabbage,cable,cactus,cake,calendar,camera,canvas,cap,caramel,card,cardamom,cashews,castor,"
            "catalogue,centrifuge,cereal,chain,chair,chalk,charger,cherries,chestnuts,chickpeas,chilli,chives,cider,"
            "cinnamon,clamp,clasp,clay,clip,clock,cloth,cloves,coal,coaster,cocoa,coconut,compass,cord,coriander,"
            "cork,corn,cotton,coupling,couscous,cranberries,cream,crowbar,cucumber,cumin,cup,curtain,cushion,cuvette,"
            "custard,cutter,cymbal,daffodil,dates,desk,dill,dish,doormat,doughnut,drawer,drill,drum,dustpan,dye,"
            "easel,eggplant,eggs,elbow,endive,engine,fabric,fan,faucet,fender,fennel,fern,figs,file,fish,flag,"
            "flannel,flower,fork,fountain,frame,fudge,funnel,fuse,garlic,gauze,gear,geranium,ginger,glass,glaze,"
            "goulash,grapes,gravel,grease,grill,grinder,grout,guitar,ham,hammock,handle,hanger,harness,hat,hazelnuts,"
            "heater,hoe,hook,hummus,ink,insole,iron,ivy,jam,jar,jigsaw,kale,kerosene,keyring,knife,knob,label,lace,"
            "lacquer,laminate,lantern,latch,lavender,lead,leaflet,lemonade,lens,lever,lid,lighter,lime,linen,"
            "liquorice,litmus,lock,loom,lotion,lumber,macaroni,magnet,mallet,mango,mattress,melon,metronome,"
            "micrometer,mirror,mitten,mop,mortar,motor,mould,mug,mulch,mushrooms,napkin ring,needle,net,nozzle,"
            "nutmeg,nut,oil,okra,omelette,orange,oregano,outlet,oven,paddle,padding,pancake,panel,papaya,parchment,"
            "parsley,parsnip,pasta,pastry,pâté,peaches,peanuts,peas,pedal,peg,pen,pepper,petri dish,pickle,pie,"
            "pillow,pin,pineapple,pipe,pistachios,pizza,plate,plug,plums,polish,pomegranate,popcorn,poster,pot,"
            "potatoes,powder,primer,propeller,pulley,pump,pumpkin,putty,quilt,quince,radish,rail,ramp,rasp,razor,"
            "receiver,reed,relish,resin,rhubarb,ring,rocket,roller,rosemary,rotor,rubber,ruler,rug,rye,saddle,"
            "saffron,sage,salad,salami,salt,sand,sardines,sauce,sausage,saw,scale,scarf,sealant,seat,semolina,sensor,"
            "sesame,shampoo,sheet,shelf,shovel,shrimp,sieve,signal,silicone,sink,skewer,sled,sleeve,slate,slippers,"
            "socket,socks,solder,spade,spatula,spinach,splint,sponge,spoon,spring,squash,stamp pad,stand,starter,"
            "stirrer,stone,stool,stove,strap,straw,string,strudel,sunflower,switch,syrup,tablecloth,tablet,tack,"
            "tahini,tank,tap,tarp,tarragon,tart,tent,thermometer,thimble,thread,thyme,tile,timer,tinsel,toaster,"
            "toffee,tomatoes,tongs,torch,tray,treacle,trout,truffle,tube,tuna,turmeric,turnip,turpentine,tweezers,"
            "twine,tyre,umbrella,valise,vanilla,vase,veneer,vial,wafer,waffle,wallet,wardrobe,watch,watermelon,wax,"
            "wedge,wheat,wheel,whisk,wick,winch,wire,wool,wrench,wreath,yarn,yeast,zester,zip"
        ),
        (
            "{q} x {n}  {a}",
            "{n}  {q}  {a}",
            "{n} x{q} ..... {a}",
            "{q}  {n}  {a} A",
            "{n}\n   {q} @ {u}  {a}",
            "- {n}, qty {q}: {a}",
            "{n} | {q} | {a}",
            "{q}x {n} ({u}) {a}",
            "{i} {n} / {q} pc / {a}",
            "{n}   {u} x {q} = {a}",
            "{q} {n} EUR {a}",
            "{n} -- {q} -- ${a}",
        ),
        ("TOTAL  {t}", "Total: {t}", "Sum {t}", "Amount due: {t}", "TOTAL EUR {t}", "To pay .... {t}", "Balance ${t}"),
        ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%d %b %Y", "%b %d, %Y"),
        ("RECEIPT", "Invoice copy", "Delivery note", "Sales slip", "", ""),
        (
            "Thank you!",
            "VAT incl.",
            "Served by: till 3",
            "Card payment",
            "Goods received in order",
            "Keep this slip",
            "Tel 555 0142",
            "No returns after 14 days",
            "Have a nice day",
        ),
    ),
    "dev": Pool(
        _words("Larkspur,Stonebridge,Amberly,Windrush,Carden,Ibsen,Moreau,Abara,Kimura,Delgado,Farrow,Underhill"),
        _words("Delicatessen,Ironmongers,Wholesale,Garden Centre,Tearoom,Merchants,Lab Services"),
        _words("toasted,golden,narrow,wide,galvanised,sparkling,spiced,tinned,glossy,stiff,tall,warm"),
        _words(
            "walnuts,crackers,mustard,vinegar,prunes,celery,spanner,rivet,padlock,caulk,trestle,notepad,ribbon,"
            "crayons,peat,shears,espresso,bagel,flask,swabs,detergent,lamp"
        ),
        ("{n}; {q}; {a}", "{i}. {n} - {q} units - {a}", "[{q}] {n} = {a}", "{n} * {q} * {a}"),
        ("TOTAL DUE {t}", "Grand total: {t}", "Total to pay = {t}"),
        ("%d-%m-%Y", "%d %B %Y", "%Y/%m/%d"),
        ("CASH SALE", "Packing list", "Bill", ""),
        ("Please come again", "Cash tendered", "Tax included", "Checked by: L.", "Open daily 8-18"),
    ),
    "test": Pool(
        _words(
            "Quillfeather,Redbank,Tidewell,Oxley,Vantor,Bramble,Castellan,Ndiaye,Sorensen,Yilmaz,Romero,Whitlock,"
            "Eastmoor,Glenrow"
        ),
        _words("Emporium,Builders,Greengrocer,Coffee House,Office World,Farm Shop,Laboratories,Traders"),
        _words("crunchy,pickled,frozen,sturdy,slim,tempered,woven,creamy,bitter,coarse,square,curved,silver,violet"),
        _words(
            "almonds,noodles,chutney,olives,raisins,leeks,pears,pliers,gasket,valve,plaster,varnish,ladder,planner,"
            "stamps,scissors,fertiliser,tulips,rake,mocha,croissant,syringe,goggles,bleach,napkins,kettle"
        ),
        ("{n}  qty={q}  amt={a}", "{q} pcs {n} : {a}", "{n} ({q}) {a}", "* {q} * {n} * {a}", "{n} _ {q} _ {a}"),
        ("TOTAL PAYABLE {t}", "Final amount: {t}", "Total ({t})", "Sum total {t}"),
        ("%d-%b-%Y", "%d. %B %Y", "%Y.%m.%d"),
        ("TILL RECEIPT", "Goods note", "Statement", ""),
        (
            "We hope to see you soon",
            "Paid by voucher",
            "Prices include tax",
            "Signed: M. R.",
            "Ref 7781",
            "Customer copy",
        ),
    ),
}
_SIZES = ("50mm", "80mm", "100mm", "150mm", "200mm", "A4", "A5", "S", "M", "L", "XL", "250g", "500g", "1kg")
_ONSETS = tuple("b c d f g h j k l m n p r s t v w z st pl gr ch th br".split())
_RHYMES = tuple("a e i o u ai ea oo ar en il un ant or ix".split())
_LOOKALIKE = {"O": "0", "o": "0", "l": "1", "I": "l", "S": "5", "B": "8", "e": "c", "t": "f"}


# of the shipped splits; test is drawn again when a recipe changes after its figures were seen
SEEDS = {"train": 0, "dev": 0, "test": 4}


def make_examples(split: str, n: int, seed: int, max_items: int = 12) -> list[Example]:
    """`n` examples of one split; the same seed gives the same rows.

    Args:
        split: `train`, `dev` or `test`: which pool of words and layouts is used.
        n: how many.
        seed: of the whole split.
        max_items: the longest list of items; 12 in the shipped data.
    """
    rng = random.Random(f"receipts/{split}/{seed}")
    plain, short = (PLAIN, SHORT) if split == "train" else (0, 0)
    wide = wide_pool(split)
    made = []
    for k in range(n):
        pool, name = (POOLS[split], split) if k < plain else (wide, f"{split}-wide")
        most = min(max_items, SHORT_ITEMS) if k < short else max_items
        example = make_example(pool, rng, f"{split}-{k:04d}", name, most)
        made.append(with_label(example) if split == "train" and k < LABELLED else example)
    return made


def with_label(example: Example) -> Example:
    """The example as one of two people labelled it, of whom one leaves the total blank."""
    if random.Random(f"receipts/label/{example.id}").random() > BLANK_TOTALS:
        return example
    return replace(example, label=_answer(json.loads(example.reference) | {"total": ""}))


def _answer(values: Mapping[str, object]) -> str:
    return json.dumps(values, ensure_ascii=False)


def wide_pool(split: str) -> Pool:
    """The split's words with many drawn layouts; no layout or label is shared between splits."""
    pools, seen = {}, {line for pool in POOLS.values() for line in (*pool.lines, *pool.totals)}
    for name, many in (("train", 60), ("dev", 24), ("test", 36)):
        rng = random.Random(f"receipts/layouts/{name}")
        pool = replace(
            POOLS[name],
            lines=_distinct(partial(draw_line, rng, partial(rng.choice, UNITS[name])), many, seen),
            totals=_distinct(partial(draw_label, rng, partial(rng.choice, LABELS[name])), many // 3, seen),
            dates=POOLS[name].dates + tuple(draw_date(rng) for _ in range(8)),
        )
        pools[name] = pool
    return pools[split]


def _distinct(draw: Callable[[], str], n: int, seen: set[str]) -> tuple[str, ...]:
    made: list[str] = []
    while len(made) < n:
        text = draw()
        if text not in seen:
            seen.add(text)
            made.append(text)
    return tuple(made)


PLAIN = 480  # training documents with hand-written layouts
SHORT, SHORT_ITEMS = 1600, 5  # training documents that list few items, and how many those may list
LABELLED = 2080  # training documents that fine-tuning learns from
BLANK_TOTALS = 0.5  # share of their labels whose total is blank
MARKS = ("", "", "", *"-:|/,.;~=*_+#>", "--", "..", "->", "::")
UNITS = {
    "train": ("pc", "qty", "no.", "each", "of"),
    "dev": ("units", "count", "ea", "n"),
    "test": ("pcs", "number", "items", "k"),
}
LABELS = {
    "train": ("total", "sum", "amount", "balance", "due", "to pay", "charged"),
    "dev": ("grand total", "total due", "bill total", "all in all", "payment"),
    "test": ("total payable", "final amount", "sum total", "you pay", "overall"),
}


def draw_line(rng: random.Random, word: Callable[[], str]) -> str:
    """A random line layout: name, quantity and amount in some order, with marks, unit words and perhaps a unit price.

    Args:
        rng: what is drawn from.
        word: draws one word that appears next to a number.
    """
    quantity = rng.choice(("{q}", "{q}", f"{word()} {{q}}", f"{{q}} {word()}", f"{word()}={{q}}", "{q}x", "x{q}"))
    money = ("{a}",) * 4 + (f"{word()}={{a}}", f"{word().upper()} {{a}}", "{a} A", "${a}", f"{word()} {{a}}")
    amount = rng.choice(money)
    if rng.random() < 0.3:
        quantity += rng.choice((" @ {u}", " ({u})", " x {u}", f" {word()} {{u}}"))
    if rng.random() < 0.2:
        quantity = rng.choice(("({})", "[{}]", "<{}>")).replace("{}", quantity)
    fields = ["{n}", quantity] if rng.random() < 0.5 else [quantity, "{n}"]
    fields.insert(rng.choice((0, 1, 2, 2, 2, 2, 2, 2)), amount)
    between = rng.choice(("\n  ", "\n     ")) if rng.random() < 0.08 else _mark(rng, 2)
    start = rng.choice(("", "", "", f"{rng.choice(MARKS)} ", "{i} ", "{i}. ", "{i}) "))
    return start + fields[0] + between + fields[1] + _mark(rng, 3) + fields[2]


def draw_label(rng: random.Random, word: Callable[[], str]) -> str:
    """A random wording of the total, of one to three words from `word`."""
    text = " ".join(word() for _ in range(rng.choice((1, 1, 2, 2, 3))))
    style = rng.choice((str.title, str.upper, str.capitalize))
    return style(text) + rng.choice((" {t}", ": {t}", " ({t})", " EUR {t}", " ${t}", f"{_mark(rng, 2)}{{t}}"))


def draw_date(rng: random.Random) -> str:
    """A random way to write a date that can be read in one way only, for `strftime`."""
    sign = rng.choice(("-", ".", "/", " ", "_", ":"))
    if rng.random() < 0.5:
        return sign.join(("%Y", "%m", "%d") if rng.random() < 0.5 else ("%d", "%m", "%Y"))
    month, sign = rng.choice(("%b", "%B")), rng.choice((sign, ". ", ", ", "  "))
    other = rng.choice((sign, " "))
    return f"{month}{other}%d{sign}%Y" if rng.random() < 0.4 else f"%d{sign}{month}{other}%Y"


def _mark(rng: random.Random, most: int) -> str:
    """What stands between two fields: punctuation, at times repeated, with or without spaces."""
    sign = rng.choice(MARKS) * rng.choice((1, 1, 1, most, 2 * most))
    return sign if sign and rng.random() < 0.2 else f" {sign} "


def make_example(pool: Pool, rng: random.Random, example_id: str, split: str, max_items: int) -> Example:
    layout, total_label = rng.randrange(len(pool.lines)), rng.choice(pool.totals)
    items = _items(pool, rng, max_items)
    total = sum(cents for _, _, cents in items)
    vendor = f"{rng.choice(pool.vendor_first)} {rng.choice(pool.vendor_last)}"
    if rng.random() < 0.15:
        vendor = vendor.upper()
    day = date(2024, 1, 1) + timedelta(days=rng.randrange(1000))
    comma = rng.random() < 0.15

    def money(cents: int) -> str:
        text = f"{cents // 100}.{cents % 100:02d}"
        return text.replace(".", ",") if comma else text

    body = []
    for number, (name, quantity, cents) in enumerate(items, 1):
        unit = money(round(cents / quantity))
        line = pool.lines[layout].format(q=quantity, n=name, a=money(cents), u=unit, i=number)
        body.append(line + (rng.choice((" .", " '", " ~", "  -")) if rng.random() < 0.06 else ""))
    stamp = day.strftime(rng.choice(pool.dates))
    when = rng.choice(("{}", "Date: {}", "{} 14:05", "Date {}")).format(stamp)
    heading = _noise(rng.choice(pool.headings), rng)
    head = [vendor, when] if rng.random() < 0.8 else [when, vendor]
    footer = [_noise(text, rng) for text in rng.sample(pool.footers, rng.choice((0, 1, 1, 2)))]
    label, _, rest = total_label.partition("{t}")
    tail = [_noise(label, rng) + money(total) + rest]
    lines = [x for x in ([heading] if heading else []) + head + body + tail + footer if x]
    answer = {
        "vendor": vendor,
        "date": day.isoformat(),
        "items": [[name, quantity, f"{cents // 100}.{cents % 100:02d}"] for name, quantity, cents in items],
        "total": f"{total // 100}.{total % 100:02d}",
    }
    return Example(
        id=example_id,
        prompt=INSTRUCTION + "\n\n" + "\n".join(lines),
        reference=_answer(answer),
        group=f"{split}-layout{layout}-{pool.totals.index(total_label)}",
        extra={"items": len(items)},
    )


def _items(pool: Pool, rng: random.Random, max_items: int) -> list[tuple[str, int, int]]:
    """Rows (name, quantity, cents): some notes repeat a line or list one article in many sizes, as real ones do."""
    n = min(max_items, rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12)))
    rows: list[tuple[str, int, int]] = []
    while len(rows) < n:
        name = rng.choice(pool.nouns)
        kind = rng.random()
        if kind < 0.4:
            name = f"{rng.choice(pool.adjectives)} {name}"
        elif kind < 0.8:
            name = f"{made_up_word(rng)} {name}"
        quantity = rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 10, 12))
        cents = quantity * rng.randrange(45, 2000)
        kind = rng.random()
        if kind < 0.02:  # the same line again
            rows += [(name, quantity, cents)] * 2
        elif kind < 0.18:  # one article in several sizes
            sizes = rng.sample(_SIZES, rng.choice((2, 3, 4, 5)))
            rows += [(f"{name} {s}", quantity, quantity * rng.randrange(45, 2000)) for s in sizes]
        else:
            rows.append((name, quantity, cents))
    return rows[:n]


def made_up_word(rng: random.Random) -> str:
    """A brand that no one has seen: names on real slips are seldom in a dictionary, so they must be copied."""
    syllables = (rng.choice(_ONSETS) + rng.choice(_RHYMES) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables).capitalize()


def _noise(text: str, rng: random.Random) -> str:
    """Reading errors in words that need not be copied: look-alike letters, a lost letter, a split word."""
    out = []
    for char in text:
        roll = rng.random()
        if roll < 0.04 and char in _LOOKALIKE:
            out.append(_LOOKALIKE[char])
        elif roll < 0.05 and char.isalpha():
            continue
        elif roll < 0.06 and char.isalpha():
            out.append(char + " ")
        else:
            out.append(char)
    return "".join(out)
