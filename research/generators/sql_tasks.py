"""Write the data of the task `sql`: small databases, questions, queries. `python research/make_tasks.py sql` runs it.

Fifty-three schemas with data, each in one split only, so the tables of the test set are new to a model. 33 kinds of
question occur in all splits, in other words in each. A query is used when it gives rows, and when leaving out its
condition, its grouping or its order gives other ones.
"""

from __future__ import annotations

import random
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_workbench.common.environment import data_folder
from dpo_workbench.tasks.sql import INSTRUCTION
from dpo_workbench.tasks.task import Example

SEEDS = {"train": 0, "dev": 1, "test": 4}
SIZES = {"train": 1200, "dev": 200, "test": 320}
# Tables with rows and columns. Kinds: name, word=a|b|c (a category), int=low..high, real=low..high, day, and another
# table's name for a reference to its id. Every table has an id. The first table of a schema is the parent of the rest.
SCHEMAS: dict[str, dict[str, str]] = {
    "library": {
        "author": "24 name:name country=Norway|Kenya|Chile|Japan|Latvia born:int=1930..1990",
        "book": "60 title:name author_id:author genre=novel|poems|history|travel pages:int=80..900 printed:int=1960..2023",
    },
    "school": {
        "teacher": "18 name:name subject=maths|music|biology|history salary:int=2100..5200",
        "course": "40 title:name teacher_id:teacher level=basic|middle|advanced hours:int=10..90 start:day",
    },
    "clinic": {
        "doctor": "16 name:name ward=east|west|north|south years:int=1..35",
        "visit": "70 patient:name doctor_id:doctor reason=fever|injury|checkup|allergy minutes:int=5..90 visited:day",
    },
    "shop": {
        "supplier": "15 name:name city=Leeds|Porto|Lyon|Graz|Turin rating:int=1..10",
        "product": "55 name:name supplier_id:supplier kind=tool|paint|wood|lamp price:real=2..180 stock:int=0..300",
    },
    "airline": {
        "plane": "14 model:name maker=Avia|Norda|Celer seats:int=40..380",
        "flight": "60 code:name plane_id:plane target=Oslo|Cairo|Lima|Delhi|Quito distance:int=200..9000 flown:day",
    },
    "farm": {
        "field": "16 name:name soil=clay|sand|loam|peat area:real=1..60",
        "harvest": "64 crop_name:name field_id:field crop=wheat|barley|beans|beets tonnes:real=1..90 cut:day",
    },
    "museum": {
        "hall": "12 name:name floor=ground|first|second width:int=6..60",
        "exhibit": "58 title:name hall_id:hall material=bronze|glass|clay|silk age:int=20..3000 value:int=100..90000",
    },
    "zoo": {
        "enclosure": "14 name:name zone=forest|desert|lake|polar size:int=50..2000",
        "animal": "62 name:name enclosure_id:enclosure diet=meat|plants|fish|insects weight:real=0.2..900 arrived:day",
    },
    "port": {
        "harbour": "13 name:name coast=north|south|east|west depth:int=4..30",
        "ship": "58 name:name harbour_id:harbour flag=Malta|Panama|Cyprus|Norway tonnage:int=200..90000 launched:day",
    },
    "mines": {
        "company": "12 name:name owner=state|family|shares staff:int=40..5000",
        "mine": "50 name:name company_id:company ore=iron|copper|zinc|gold depth:int=20..1800 yearly_output:real=1..400",
    },
    "orchard": {
        "farmer": "14 name:name valley=upper|middle|lower hectares:real=2..80",
        "tree": "60 label:name farmer_id:farmer fruit=apple|pear|plum|cherry height:real=1.5..12 planted:day",
    },
    "brewing": {
        "brewery": "12 name:name town=Bruges|Pilsen|Cork|Munich founded:int=1700..2015",
        "beer": "56 name:name brewery_id:brewery style=lager|stout|ale|porter strength:real=2..11 bitterness:int=5..90",
    },
    "kitchen": {
        "chef": "13 name:name cuisine=Thai|Greek|French|Indian stars:int=0..3",
        "dish": "60 title:name chef_id:chef course=starter|main|dessert calories:int=90..1400 price:real=4..65",
    },
    "buses": {
        "depot": "11 name:name district=old|new|harbour capacity:int=10..90",
        "bus": "55 code:name depot_id:depot fuel=diesel|gas|electric seats:int=18..75 mileage:int=1000..700000",
    },
    "furniture": {
        "workshop": "12 name:name quarter=north|south|centre workers:int=2..60",
        "shelf": "54 model:name workshop_id:workshop wood=oak|pine|ash|walnut width:int=30..240 cost:real=20..900",
    },
    "wolves": {
        "forest": "12 name:name climate=cold|mild|dry area:real=5..900",
        "wolf": "50 name:name forest_id:forest coat=grey|white|black body_mass:real=18..70 tagged:day",
    },
    "cutlery": {
        "smith": "12 name:name guild=red|blue|green experience:int=1..45",
        "knife": "55 name:name smith_id:smith steel=carbon|stainless|damask blade_length:int=6..40 price:real=9..800",
    },
    "press": {
        "editor": "14 name:name desk=sport|politics|culture|science age:int=24..68",
        "story": "60 headline:name editor_id:editor tone=serious|light|critical word_count:int=120..4000 published:day",
    },
    "galleries": {
        "gallery": "12 name:name city=Madrid|Berlin|Rome|Paris entry_fee:real=0..25",
        "painting": "60 title:name gallery_id:gallery technique=oil|fresco|pastel estimate:int=500..900000 year_made:int=1500..2020",
    },
    "beekeeping": {
        "apiary": "11 name:name setting=meadow|forest|roof altitude:int=10..1900",
        "colony": "52 label:name apiary_id:apiary breed=carnica|ligustica|buckfast honey:real=2..60 frames:int=4..40",
    },
    "parish": {
        "diocese": "11 name:name rite=roman|greek|coptic members:int=900..80000",
        "church": "50 name:name diocese_id:diocese shape=basilica|cross|hall bells:int=0..12 tower_height:real=8..120",
    },
    "sport": {
        "coach": "14 name:name sport=football|handball|hockey licence_year:int=1985..2022",
        "player": "62 name:name coach_id:coach position=keeper|defender|forward goals:int=0..55 signed:day",
    },
    "storage": {
        "warehouse": "12 name:name climate=cooled|heated|plain surface:int=300..20000",
        "box": "60 code:name warehouse_id:warehouse content=glass|books|cloth|tools volume:real=0.1..9 stored:day",
    },
    "power": {
        "utility": "11 name:name ownership=public|private customers:int=900..400000",
        "battery": "50 model:name utility_id:utility chemistry=lithium|sodium|lead charge:real=1..600 cycles:int=10..6000",
    },
    "industry": {
        "region": "12 name:name terrain=hills|plain|coast population:int=2000..900000",
        "factory": "54 name:name region_id:region product=paper|steel|cars|shoes employees:int=20..6000 energy:real=1..90",
    },
    "plants": {
        "nursery": "12 name:name sun=full|half|shade beds:int=4..80",
        "seedling": "58 name:name nursery_id:nursery family=rose|grass|lily height_cm:real=2..90 sown:day",
    },
    "music": {
        "band": "14 name:name genre=rock|jazz|folk|techno founded:int=1960..2021",
        "album": "58 title:name band_id:band format=vinyl|disc|stream tracks:int=5..24 length_minutes:real=18..90 released:day",
    },
    "films": {
        "studio": "12 name:name country=France|India|Korea|Italy budget:int=1..900",
        "film": "60 title:name studio_id:studio genre=drama|comedy|thriller duration:int=70..210 rating:real=1..10",
    },
    "bank": {
        "customer": "16 name:name segment=student|private|business income:int=900..20000",
        "account": "62 label:name customer_id:customer currency=euro|dollar|yen balance:real=5..90000 opened:day",
    },
    "insurance": {
        "agent": "13 name:name team=life|car|home bonus:int=0..9000",
        "policy": "58 code:name agent_id:agent cover=basic|plus|full premium:real=8..700 term_years:int=1..30",
    },
    "court": {
        "judge": "12 name:name chamber=civil|criminal|labour appointed:int=1988..2022",
        "lawsuit": "55 title:name judge_id:judge outcome=won|lost|settled hearings:int=1..25 claim_value:real=1..950",
    },
    "space": {
        "agency": "10 name:name continent=Europe|Asia|America engineers:int=40..9000",
        "satellite": "56 name:name agency_id:agency orbit=low|polar|high mass:real=3..6000 launch_date:day",
    },
    "observatory": {
        "telescope": "11 name:name site=desert|island|summit mirror:real=0.3..12",
        "star": "60 name:name telescope_id:telescope colour=red|blue|yellow brightness:real=1..15 planets:int=0..9",
    },
    "rivers": {
        "river": "12 name:name sea=Baltic|Black|North length_km:int=30..2800",
        "bridge": "52 name:name river_id:river material=stone|steel|wood span:real=8..900 lanes:int=1..8",
    },
    "mountains": {
        "guide": "13 name:name language=German|Spanish|Nepali tours:int=1..300",
        "hike": "56 title:name guide_id:guide difficulty=easy|medium|hard distance_km:real=2..60 ascent:int=40..2500",
    },
    "hospital": {
        "department": "11 name:name building=A|B|C|D budget:int=90..9000",
        "nurse": "60 name:name department_id:department contract=full|part|night overtime:int=0..160 hired:day",
    },
    "pharmacy": {
        "maker": "12 name:name nation=Swiss|Danish|Irish turnover:real=1..900",
        "drug": "58 name:name maker_id:maker form=tablet|syrup|cream dose:int=5..1000 pack_price:real=1..240",
    },
    "vets": {
        "vet": "12 name:name practice=town|village|mobile rate:int=30..140",
        "pet": "60 name:name vet_id:vet species=dog|cat|rabbit|parrot age:int=1..18 vaccinated:day",
    },
    "dairy": {
        "barn": "11 name:name floor=straw|sand|rubber size:int=80..2400",
        "calf": "52 tag:name barn_id:barn breed=Angus|Jersey|Holstein weight_kg:real=30..260 born_on:day",
    },
    "cheese": {
        "cellar": "11 name:name humidity=low|medium|high temperature:real=4..15",
        "wheel": "55 label:name cellar_id:cellar milk=cow|goat|sheep months:int=1..48 kilos:real=1..40",
    },
    "vineyard": {
        "slope": "12 name:name side=north|south|west vines:int=200..9000",
        "barrel": "54 code:name slope_id:slope grape=merlot|riesling|malbec litres:int=50..900 filled:day",
    },
    "software": {
        "developer": "14 name:name office=Riga|Porto|Dublin commits:int=10..9000",
        "ticket": "62 title:name developer_id:developer severity=low|medium|critical hours_spent:real=0.5..90 closed:day",
    },
    "network": {
        "router": "12 model:name vendor=Axion|Delmar|Corvo ports:int=4..96",
        "laptop": "58 hostname:name router_id:router system=linux|windows|mac memory_gb:int=4..128 traffic:real=0.1..900",
    },
    "post": {
        "courier": "14 name:name vehicle=bike|van|truck shifts:int=1..26",
        "parcel": "62 tracking:name courier_id:courier service=standard|express|pickup grams:int=50..20000 sent:day",
    },
    "university": {
        "faculty": "11 name:name campus=city|park|river founded:int=1400..2005",
        "student": "62 name:name faculty_id:faculty degree=bachelor|master|doctor credits:int=0..300 grade:real=1..5",
    },
    "auction": {
        "seller": "13 name:name country=Spain|Canada|Peru sales:int=1..4000",
        "watch": "55 model:name seller_id:seller movement=quartz|manual|automatic start_price:real=20..9000 bids:int=0..80",
    },
    "weather": {
        "county": "12 name:name coast=yes|no residents:int=900..300000",
        "storm": "54 name:name county_id:county category=weak|strong|severe wind_speed:int=40..260 damage:real=0.1..80 started:day",
    },
    "fishing": {
        "skipper": "13 name:name crew=small|medium|large boats:int=1..9",
        "haul": "58 label:name skipper_id:skipper fish=cod|tuna|herring|eel kilos:real=5..900 landed:day",
    },
    "gym": {
        "trainer": "12 name:name skill=boxing|yoga|rowing|dance fee:int=20..95",
        "member": "60 name:name trainer_id:trainer plan=day|month|year visits:int=0..240 joined:day",
    },
    "hotel": {
        "branch": "11 name:name region=coast|valley|city|lake stars:int=1..5",
        "room": "56 label:name branch_id:branch view=sea|garden|street|yard price:real=35..420 beds:int=1..6",
    },
    "bakery": {
        "baker": "12 name:name shift=dawn|day|late wage:int=13..32",
        "loaf": "58 label:name baker_id:baker grain=rye|oat|spelt|maize weight:int=200..1800 cost:real=0.5..9",
    },
    "railway": {
        "line": "13 name:name gauge=narrow|standard|broad length:int=12..780",
        "station": "60 name:name line_id:line zone=inner|outer|rural platforms:int=1..14 passengers:int=50..90000 opened:day",
    },
    "theatre": {
        "director": "13 name:name style=comedy|tragedy|opera|puppets awards:int=0..12",
        "show": "60 title:name director_id:director stage=main|studio|garden tickets:int=20..1500 fee:real=8..120 premiere:day",
    },
}  # fmt: skip
_DEV, _TEST = ("gym", "hotel"), ("bakery", "railway", "theatre")
HOMES = {"train": tuple(s for s in SCHEMAS if s not in _DEV + _TEST), "dev": _DEV, "test": _TEST}
FIRST = HOMES["train"][:8]  # those that `nano` knows from its own training (research/train_nano.py)
_SYLLABLES = "ba do ka li mo ne pa ri so ta ve zu an el or is".split()


@dataclass(frozen=True)
class Kind:
    """A kind of question: wordings (two for train, one for dev, one for test, in this order) and the query.

    {t} a table, {T} its plural, {l} its label column, {n} {m} number columns, {N} one as words, {c} a category column,
    {v} {w} two of its values, {k} a number that splits the column, {j} a larger one, {d} a day column, {D} a day;
    {p} the parent, {P} its plural, {q} its label, {r} the reference to it, {o} the label of one of its rows.
    """

    name: str
    said: str
    query: str

    def wordings(self, split: str) -> list[str]:
        one, two, three, four = self.said.split(" | ")
        return {"train": [one, two], "dev": [three], "test": [four]}[split]


KINDS = tuple(
    Kind(*entry)
    for entry in (
        ("count", "How many {T} are there? | Count the {T}. | What is the number of {T}? | Give the total number of {T}.",
         "SELECT COUNT(*) FROM {t}"),
        ("count where", "How many {T} have {c} '{v}'? | Count the {T} whose {c} is '{v}'. | What is the number of {T} with {c} '{v}'? | For how many {T} is the {c} '{v}'?",
         "SELECT COUNT(*) FROM {t} WHERE {c} = '{v}'"),
        ("count above", "How many {T} have {N} above {k}? | Count the {T} whose {N} is more than {k}. | What is the number of {T} with {N} over {k}? | For how many {T} does the {N} exceed {k}?",
         "SELECT COUNT(*) FROM {t} WHERE {n} > {k}"),
        ("list where", "Show the {l} of all {T} with {c} '{v}'. | Which {T} have {c} '{v}'? Give the {l}. | Return the {l} of the {T} whose {c} is '{v}'. | Give the {l} of each of the {T} where {c} is '{v}'.",
         "SELECT {l} FROM {t} WHERE {c} = '{v}'"),
        ("list above", "Show the {l} of all {T} with {N} above {k}. | Which {T} have {N} of more than {k}? Give the {l}. | Return the {l} of the {T} whose {N} is over {k}. | Give the {l} of each of the {T} where {N} exceeds {k}.",
         "SELECT {l} FROM {t} WHERE {n} > {k}"),
        ("list below", "Show the {l} of all {T} with {N} below {k}. | Which {T} have {N} of less than {k}? Give the {l}. | Return the {l} of the {T} whose {N} is under {k}. | Give the {l} of each of the {T} where {N} is lower than {k}.",
         "SELECT {l} FROM {t} WHERE {n} < {k}"),
        ("average", "What is the average {N} of the {T}? | Show the mean {N} of all {T}. | Return the average {N} over the {T}. | Give the mean {N} for the {T}.",
         "SELECT AVG({n}) FROM {t}"),
        ("largest", "What is the largest {N} of the {T}? | Show the highest {N} of all {T}. | Return the greatest {N} over the {T}. | Give the maximum {N} for the {T}.",
         "SELECT MAX({n}) FROM {t}"),
        ("smallest", "What is the smallest {N} of the {T}? | Show the lowest {N} of all {T}. | Return the least {N} over the {T}. | Give the minimum {N} for the {T}.",
         "SELECT MIN({n}) FROM {t}"),
        ("total where", "What is the total {N} of the {T} with {c} '{v}'? | Show the sum of {N} of all {T} whose {c} is '{v}'. | Return the total {N} over the {T} with {c} '{v}'. | Give the summed {N} for the {T} where {c} is '{v}'.",
         "SELECT SUM({n}) FROM {t} WHERE {c} = '{v}'"),
        ("average where", "What is the average {N} of the {T} with {c} '{v}'? | Show the mean {N} of all {T} whose {c} is '{v}'. | Return the average {N} over the {T} with {c} '{v}'. | Give the mean {N} for the {T} where {c} is '{v}'.",
         "SELECT AVG({n}) FROM {t} WHERE {c} = '{v}'"),
        ("top one", "Which one of the {T} has the highest {N}? Give its {l}. | Show the {l} of the {t} with the largest {N}. | Return the {l} of the {t} whose {N} is greatest. | Give the {l} of the {t} with the maximum {N}.",
         "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT 1"),
        ("bottom one", "Which one of the {T} has the lowest {N}? Give its {l}. | Show the {l} of the {t} with the smallest {N}. | Return the {l} of the {t} whose {N} is least. | Give the {l} of the {t} with the minimum {N}.",
         "SELECT {l} FROM {t} ORDER BY {n} LIMIT 1"),
        ("top three", "Show the {l} of the 3 {T} with the highest {N}, highest first. | Which 3 {T} have the largest {N}? Give the {l}, largest first. | Return the {l} of the 3 {T} whose {N} is greatest, in falling order. | Give the {l} of the top 3 {T} by {N}, from the top down.",
         "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT 3"),
        ("in order", "Show the {l} of all {T} in the order of {N}, lowest first. | List the {l} of the {T} by rising {N}. | Return the {l} of all {T}, sorted by {N}. | Give the {l} of each of the {T}, ordered by {N} from low to high.",
         "SELECT {l} FROM {t} ORDER BY {n}"),
        ("distinct", "Which different values of {c} do the {T} have? | Show each {c} of the {T} once. | Return the distinct {c} of the {T}. | Give all {c} values of the {T} without repeats.",
         "SELECT DISTINCT {c} FROM {t}"),
        ("count distinct", "How many different values of {c} do the {T} have? | Count the different {c} of the {T}. | What is the number of distinct {c} of the {T}? | Give the number of {c} values of the {T} without repeats.",
         "SELECT COUNT(DISTINCT {c}) FROM {t}"),
        ("group count", "How many {T} are there for each {c}? | Show each {c} with its number of {T}. | Return every {c} and the number of {T} that have it. | Give the number of {T} per {c}, the {c} first.",
         "SELECT {c}, COUNT(*) FROM {t} GROUP BY {c}"),
        ("group average", "What is the average {N} of the {T} for each {c}? | Show each {c} with the mean {N} of its {T}. | Return every {c} and the average {N} of the {T} that have it. | Give the mean {N} of the {T} per {c}, the {c} first.",
         "SELECT {c}, AVG({n}) FROM {t} GROUP BY {c}"),
        ("group largest", "What is the highest {N} of the {T} for each {c}? | Show each {c} with the largest {N} of its {T}. | Return every {c} and the greatest {N} of the {T} that have it. | Give the maximum {N} of the {T} per {c}, the {c} first.",
         "SELECT {c}, MAX({n}) FROM {t} GROUP BY {c}"),
        ("most common", "Which {c} do most {T} have? | Show the most common {c} of the {T}. | Return the {c} that the most {T} have. | Give the {c} that is most frequent among the {T}.",
         "SELECT {c} FROM {t} GROUP BY {c} ORDER BY COUNT(*) DESC LIMIT 1"),
        ("both", "Show the {l} of the {T} with {c} '{v}' and {N} above {k}. | Which {T} have {c} '{v}' and {N} of more than {k}? Give the {l}. | Return the {l} of the {T} whose {c} is '{v}' and whose {N} is over {k}. | Give the {l} of each of the {T} where {c} is '{v}' and {N} exceeds {k}.",
         "SELECT {l} FROM {t} WHERE {c} = '{v}' AND {n} > {k}"),
        ("either", "How many {T} have {c} '{v}' or '{w}'? | Count the {T} whose {c} is '{v}' or '{w}'. | What is the number of {T} with {c} '{v}' or '{w}'? | For how many {T} is the {c} either '{v}' or '{w}'?",
         "SELECT COUNT(*) FROM {t} WHERE {c} IN ('{v}', '{w}')"),
        ("between", "Show the {l} of the {T} with {N} from {k} to {j}. | Which {T} have {N} between {k} and {j}? Give the {l}. | Return the {l} of the {T} whose {N} lies in {k} to {j}. | Give the {l} of each of the {T} where {N} is in the range {k} to {j}.",
         "SELECT {l} FROM {t} WHERE {n} BETWEEN {k} AND {j}"),
        ("above average", "How many {T} have {N} above the average? | Count the {T} whose {N} is more than the mean. | What is the number of {T} with {N} over the average {N}? | For how many {T} does the {N} exceed the mean {N}?",
         "SELECT COUNT(*) FROM {t} WHERE {n} > (SELECT AVG({n}) FROM {t})"),
        ("after", "How many {T} have {d} after {D}? | Count the {T} whose {d} is later than {D}. | What is the number of {T} with {d} past {D}? | For how many {T} does the {d} come after {D}?",
         "SELECT COUNT(*) FROM {t} WHERE {d} > '{D}'"),
        ("of parent", "Show the {l} of the {T} of the {p} '{o}'. | Which {T} belong to the {p} '{o}'? Give the {l}. | Return the {l} of the {T} that the {p} '{o}' has. | Give the {l} of each of the {T} under the {p} '{o}'.",
         "SELECT {t}.{l} FROM {t} JOIN {p} ON {t}.{r} = {p}.id WHERE {p}.{q} = '{o}'"),
        ("count per parent", "How many {T} does each {p} have? Give its {q} too. | Show the {q} of each {p} with its number of {T}. | Return the {q} of every {p} that has {T}, and how many. | Give the number of {T} per {p}, the {q} first.",
         "SELECT {p}.{q}, COUNT(*) FROM {p} JOIN {t} ON {t}.{r} = {p}.id GROUP BY {p}.id"),
        ("total per parent", "What is the total {N} of the {T} of each {p}? Give its {q} too. | Show the {q} of each {p} with the sum of {N} of its {T}. | Return the {q} of every {p} that has {T}, and their total {N}. | Give the summed {N} of the {T} per {p}, the {q} first.",
         "SELECT {p}.{q}, SUM({t}.{n}) FROM {p} JOIN {t} ON {t}.{r} = {p}.id GROUP BY {p}.id"),
        ("no child", "Which {P} have no {T}? Give the {q}. | Show the {q} of the {P} without {T}. | Return the {q} of each {p} that has no {T}. | Give the {q} of the {P} to which none of the {T} belong.",
         "SELECT {q} FROM {p} WHERE id NOT IN (SELECT {r} FROM {t})"),
        ("many children", "Which {P} have more than {h} {T}? Give the {q}. | Show the {q} of the {P} with more than {h} {T}. | Return the {q} of each {p} that has over {h} {T}. | Give the {q} of the {P} to which more than {h} of the {T} belong.",
         "SELECT {p}.{q} FROM {p} JOIN {t} ON {t}.{r} = {p}.id GROUP BY {p}.id HAVING COUNT(*) > {h}"),
        ("most children", "Which one of the {P} has the most {T}? Give its {q}. | Show the {q} of the {p} with the most {T}. | Return the {q} of the {p} that has the greatest number of {T}. | Give the {q} of the {p} to which most {T} belong.",
         "SELECT {p}.{q} FROM {p} JOIN {t} ON {t}.{r} = {p}.id GROUP BY {p}.id ORDER BY COUNT(*) DESC LIMIT 1"),
        ("parent category", "How many {T} belong to {P} with {b} '{u}'? | Count the {T} of the {P} whose {b} is '{u}'. | What is the number of {T} of {P} with {b} '{u}'? | For how many {T} does the {p} have {b} '{u}'?",
         "SELECT COUNT(*) FROM {t} JOIN {p} ON {t}.{r} = {p}.id WHERE {p}.{b} = '{u}'"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    name: str
    kind: str  # name, word, int, real, day, or a table
    span: str = ""


def columns(schema: str, table: str) -> list[Column]:
    """The columns of a table but its id, in order."""
    found = []
    for part in SCHEMAS[schema][table].split()[1:]:
        name, kind, span = re.fullmatch(r"(\w+)(?::(\w+))?(?:=(.*))?", part).groups()  # type: ignore[union-attr]
        found.append(Column(name, kind or "word", span or ""))
    return found


def plural(word: str) -> str:
    """English plurals of the table names."""
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    if word in ("loaf", "shelf", "wolf", "knife", "calf"):
        return re.sub(r"fe?$", "ves", word)
    return word + ("es" if re.search(r"(?:s|x|ch|sh)$", word) else "s")


def make_databases(folder: Path) -> None:
    """One SQLite file a schema in `databases/`, the same bytes each time."""
    (folder / "databases").mkdir(parents=True, exist_ok=True)
    for schema in SCHEMAS:
        path = folder / "databases" / f"{schema}.sqlite"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA page_size = 1024")
            for table in SCHEMAS[schema]:
                _fill(database, schema, table)
            database.commit()
            database.execute("VACUUM")


def _fill(database: sqlite3.Connection, schema: str, table: str) -> None:
    rng = random.Random(f"{schema} {table}")
    types = {"int": "INTEGER", "real": "REAL"}
    spec = columns(schema, table)
    parts = ["id INTEGER PRIMARY KEY"]
    for column in spec:
        parts.append(
            f"{column.name} INTEGER REFERENCES {column.kind}(id)"
            if column.kind in SCHEMAS[schema]
            else f"{column.name} {types.get(column.kind, 'TEXT')}"
        )
    database.execute(f"CREATE TABLE {table} ({', '.join(parts)})")
    names: set[str] = set()
    for number in range(1, int(SCHEMAS[schema][table].split()[0]) + 1):
        row: list[Any] = [number]
        for column in spec:
            row.append(_value(column, schema, rng, names))
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _value(column: Column, schema: str, rng: random.Random, names: set[str]) -> Any:
    if column.kind == "name":
        while True:
            name = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3)))).capitalize()
            if name not in names:
                names.add(name)
                return name
    if column.kind == "word":
        values = column.span.split("|")
        return rng.choices(values, range(len(values) + 2, 2, -1))[0]
    if column.kind == "day":
        return f"{rng.choice((2022, 2023, 2024))}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    if column.kind in SCHEMAS[schema]:
        n = int(SCHEMAS[schema][column.kind].split()[0])
        return min(rng.randint(1, n), rng.randint(1, n), n - 2)  # some have many, the last two none
    low, high = map(float, column.span.split(".."))
    return rng.randint(int(low), int(high)) if column.kind == "int" else round(rng.uniform(low, high), 1)


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The first `n` questions of a split, no prompt twice. The databases must be there."""
    rng = random.Random(f"{split} {seed}")
    opened = {s: sqlite3.connect(data_folder() / "sql" / "databases" / f"{s}.sqlite") for s in HOMES[split]}
    found: list[Example] = []
    seen: set[str] = set()
    while len(found) < n:
        kind = rng.choice(KINDS)
        draws = (make_example(split, len(found), kind, rng, opened) for _ in range(50))
        example = next((e for e in draws if e is not None and e.prompt not in seen), None)
        if example is not None:
            seen.add(example.prompt)
            found.append(example)
    for database in opened.values():
        database.close()
    return found


def make_example(
    split: str, number: int, kind: Kind, rng: random.Random, opened: dict[str, sqlite3.Connection]
) -> Example | None:
    """One question; None where the draw does not suit its table, or its query can be had by chance."""
    schema = rng.choice(tuple(opened))
    database = opened[schema]
    parent, child = SCHEMAS[schema]
    table = child if re.search(r"\{[pr]\}", kind.query) else rng.choice((parent, child, child))
    words = _words(schema, table, parent, database, rng)
    try:
        query, question = kind.query.format(**words), rng.choice(kind.wordings(split)).format(**words)
    except KeyError:  # a day, where the table has none
        return None
    if not sound(database, query):
        return None
    head = "\n".join(f"{t}(id, {', '.join(c.name for c in columns(schema, t))})" for t in SCHEMAS[schema])
    prompt = f"{INSTRUCTION}\n\n{head}\n\n{question}"
    return Example(f"sql-{split}-{number}", prompt, query, f"{schema} {kind.name}", {"database": schema})


def _words(schema: str, table: str, parent: str, database: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    spec = columns(schema, table)
    label = next(c.name for c in spec if c.kind == "name")
    number = rng.choice([c for c in spec if c.kind in ("int", "real")])
    category = next(c for c in spec if c.kind == "word")
    values = sorted(v for (v,) in database.execute(f"SELECT {number.name} FROM {table}"))
    low, high = values[rng.randrange(len(values) // 5, len(values) // 2)], values[-1 - rng.randrange(len(values) // 3)]
    one, other = rng.sample(category.span.split("|"), 2)
    owner = next(c for c in columns(schema, parent) if c.kind == "name").name
    grade = next(c for c in columns(schema, parent) if c.kind == "word")
    words = {
        "t": table, "T": plural(table), "l": label, "n": number.name, "N": number.name, "c": category.name, "v": one,
        "w": other, "k": _round(low), "j": _round(high), "p": parent, "P": plural(parent), "q": owner, "b": grade.name,
        "u": rng.choice(grade.span.split("|")), "r": next((c.name for c in spec if c.kind == parent), "id"),
        "o": rng.choice([v for (v,) in database.execute(f"SELECT {owner} FROM {parent}")]), "h": rng.randint(2, 6),
    }  # fmt: skip
    days = [c.name for c in spec if c.kind == "day"]
    if days:
        words |= {"d": days[0], "D": f"{rng.choice((2022, 2023))}-{rng.choice((3, 6, 9, 12)):02}-01"}
    return words


def _round(value: float) -> int:
    """A number that a person would ask about, near the value."""
    step = 1 if value < 20 else 5 if value < 100 else 10 if value < 1000 else 100
    return max(step, int(value // step * step))


def sound(database: sqlite3.Connection, query: str) -> bool:
    """True when a query gives 1 to 60 rows with something in them, and each shorter form of it gives other ones."""
    rows = database.execute(query).fetchall()
    if not 0 < len(rows) <= 60 or all(cell in (None, 0) for row in rows for cell in row):
        return False
    if " LIMIT 1" in query:  # one best only
        more = database.execute(query.replace(" LIMIT 1", " LIMIT 2")).fetchall()
        order = re.search(r"ORDER BY (.+?)(?: DESC)? LIMIT", query)[1]  # type: ignore[index]
        keys = database.execute(
            re.sub(r"^SELECT .+? FROM", f"SELECT {order} FROM", query).replace(" LIMIT 1", " LIMIT 2")
        )
        best = keys.fetchall()
        if len(more) < 2 or best[0] == best[1]:
            return False
    ordered = " ORDER BY " in query
    if ordered and " LIMIT 1" not in query:  # ties would leave the order open
        order = re.search(r"ORDER BY (\w+)", query)[1]  # type: ignore[index]
        keys = [k for (k,) in database.execute(re.sub(r"^SELECT .+? FROM", f"SELECT {order} FROM", query))]
        if len(set(keys)) < len(keys):
            return False
    for pattern in (
        r" WHERE .*",
        r" GROUP BY .*",
        r" HAVING .*",
        r" ORDER BY .*",
        r" LIMIT .*",
        r" DESC",
        r"DISTINCT ",
        r" AND .*",
    ):
        shorter = re.sub(pattern, "", query)
        if shorter == query or shorter.count("(") != shorter.count(")"):
            continue
        try:
            other = database.execute(shorter).fetchall()
        except sqlite3.Error:
            continue
        if other == rows or (not ordered and sorted(map(repr, other)) == sorted(map(repr, rows))):
            return False
    return True
