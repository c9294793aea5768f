"""Write the data of the task `briefs`: notes of many facts and short summaries. `python research/make_tasks.py briefs`.

Twenty-seven kinds of note (laboratory, incidents, handovers, deliveries ...), each with what must be in its summary and
what need not. All kinds occur in all splits; names, places, layouts and the openings of the notes are disjoint.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from dpo_workbench.tasks.briefs import INSTRUCTION
from dpo_workbench.tasks.task import Example

SEEDS = {"train": 0, "dev": 1, "test": 3}
SIZES = {"train": 1200, "dev": 200, "test": 320}
NAMES = {
    "train": "Adams,Brandt,Castro,Dlamini,Eriksen,Fujita,Garcia,Haddad,Ibsen,Jansen,Kovac,Lindt,Moreau,Nowak,Okoye,Patel",
    "dev": "Quist,Rossi,Sato,Tembo",
    "test": "Ueda,Varga,Weber,Xu,Yilmaz,Zeller,Abbas,Blom",
}
PLACES = {
    "train": "north hall,east wing,block 4,yard 2,dock 7,lab 12,bay 3,gate 5,level 2,room 18,shed 6,mill 1",
    "dev": "south hall,bay 9,room 31",
    "test": "west wing,dock 11,lab 27,yard 8,gate 14",
}
OPENINGS = {
    "train": ("{title}, {day}", "{title} ({day})", "{day}: {title}"),
    "dev": ("{title} of {day}",),
    "test": ("Note: {title}, {day}", "{title} - {day}"),
}
LAYOUTS = {
    "train": ("- {label}: {value}", "{label}: {value}", "* {label} {value}", "{label} = {value}"),
    "dev": ("> {label}: {value}",),
    "test": ("{label} -> {value}", "[{label}] {value}"),
}
REMARKS = {
    "train": "copy filed|nothing else seen|photos taken|signed by both|no comment|tools put back|next check as usual",
    "dev": "log closed|paper kept",
    "test": "sheet scanned|all quiet after|list handed in|radio tested",
}


@dataclass(frozen=True)
class Kind:
    """`fields`: label=value, the keys among them marked with `!`; `said`: the summary. Values: {name} {place} {time}
    {n:low..high} or a choice a|b|c; a field's name is its label's first word."""

    title: str
    fields: str
    said: str


KINDS = tuple(
    Kind(*entry)
    for entry in (
        ("Pump check", "!pump=P{n:2..48} !flow={n:12..95} L/min; limit={n:100..140} L/min; temperature={n:18..60} C; !checked by={name}; place={place}; oil=fine|low|dark",
         "{checked} found pump {pump} at {flow}."),
        ("Spill report", "!amount={n:2..90} L; !substance=diesel|acid|brine|coolant; !place={place}; time={time}; reported by={name}; staff hurt=none; cleaned in={n:10..90} min",
         "{amount} of {substance} spilled at {place}."),
        ("Ward handover", "!patient={name}; !bed={n:1..40}; pulse={n:55..110}; !temperature={n:36..40}.{n:1..9} C; diet=soft|full|none; next dose={time}; visitor={name}",
         "{patient} in bed {bed} has {temperature}."),
        ("Titration", "!sample=S{n:11..99}; indicator=blue|red|none; !volume={n:8..42}.{n:1..9} mL; !result={n:1..9}.{n:11..99} mol/L; repeats={n:2..5}; analyst={name}; room={n:18..25} C",
         "Sample {sample} needed {volume}, giving {result}."),
        ("Delivery", "!order={n:1200..9800}; carrier={name}; !boxes={n:3..60} boxes; !damaged={n:1..9} damaged; dock={n:1..12}; weight={n:80..900} kg; arrived={time}",
         "Order {order}: {boxes} came, {damaged}."),
        ("Night shift", "!leader={name}; crew={n:3..14}; !output={n:200..990} parts; !stopped={n:5..80} min; cause=jam|heat|cable|sensor; !line=line {n:1..9}; scrap={n:2..40} parts",
         "{leader} made {output} on {line}, stopped {stopped}."),
        ("Site visit", "!visitor={name}; host={name}; !place={place}; !finding=crack|rust|leak|loose bolt; !deadline=in {n:2..30} days; weather=dry|rain|wind; photos={n:2..20}",
         "{visitor} found a {finding} at {place}, due {deadline}."),
        ("Water sample", "!source=well {n:1..30}; depth={n:5..80} m; !nitrate={n:5..70} mg/L; limit=50 mg/L; !acidity=pH {n:6..8}.{n:1..9}; taken by={name}; bottle=B{n:10..99}",
         "The {source} has nitrate of {nitrate} and {acidity}."),
        ("Meeting", "!topic=budget|hiring|safety|move; !chair={name}; present={n:4..22}; !decision=approved|postponed|rejected; !next=in {n:1..8} weeks; room={n:1..40}; ended={time}",
         "{chair} had the {topic} {decision}; next meeting {next}."),
        ("Fire alarm", "!place={place}; !cause=dust|toast|fault|drill; time={time}; !out=all out in {n:2..14} min; floor={n:1..9}; called by={name}; brigade=came|not called",
         "Alarm at {place} from {cause}, {out}."),
        ("Engine test", "!engine=E{n:100..990}; !power={n:40..390} kW; !fuel={n:4..30} L/h; hours={n:2..48} h; noise={n:60..99} dB; engineer={name}; place={place}",
         "Engine {engine} gave {power} at {fuel}."),
        ("Soil core", "!core=C{n:10..99}; !depth={n:20..300} cm; !layer=clay|sand|peat|gravel; moisture={n:5..60} %; driller={name}; site={place}; tube={n:1..9}",
         "Core {core} reached {depth} and ended in {layer}."),
        ("Complaint", "!customer={name}; !product=kettle|lamp|drill|mixer; bought={n:1..30} days ago; !fault=no power|loud|leaking|cracked; !wish=refund|repair|exchange; phone={n:200..990}; agent={name}",
         "{customer} wants a {wish} for a {product}: {fault}."),
        ("Lift failure", "!lift=lift {n:1..12}; !stuck={n:5..95} min; people={n:1..8}; !freed by={name}; cause=door|motor|power; time={time}; place={place}",
         "{freed} freed people from {lift} after {stuck}."),
        ("Stock count", "!item=bolts|filters|gloves|cables; !counted={n:100..950}; booked={n:951..1400}; !missing={n:10..99} missing; shelf={n:1..60}; counter={name}; place={place}",
         "{counted} {item} counted, {missing}."),
        ("Road works", "!road=road {n:2..90}; !closed={n:2..20} days; lanes={n:1..3}; !detour={n:3..40} km; crew={n:4..20}; foreman={name}; asphalt={n:20..400} t",
         "The {road} is closed {closed}; the detour takes {detour}."),
        ("Flight log", "!pilot={name}; !route=Oslo to Bergen|Lyon to Nice|Graz to Wien; !delay={n:5..95} min late; seats={n:40..190}; fuel={n:900..8000} kg; gate={n:1..40}; wind={n:3..50} kt",
         "{pilot} flew {route}, {delay}."),
        ("Vaccination day", "!clinic={place}; !given={n:40..480} doses; !wasted={n:1..19} wasted; staff={n:2..12}; fridge={n:2..8} C; lead={name}; queue={n:5..70} min",
         "At {clinic} {given} were given, {wasted}."),
        ("Server outage", "!server=srv{n:10..99}; !down={n:3..240} min; !cause=disk full|bad cable|update|overload; users={n:20..900}; restored by={name}; time={time}; rack={n:1..30}",
         "{server} was down {down}: {cause}."),
        ("Bridge check", "!bridge=bridge {n:1..60}; !rating=grade {n:1..5}; !defect=rust|crack|loose rail; load={n:5..60} t; inspector={name}; span={n:8..120} m; next check=in {n:1..6} years",
         "The {bridge} got {rating} for {defect}."),
        ("Harvest day", "!crop=wheat|barley|beans|beets; !yield={n:10..95} t; !field=field {n:1..40}; moisture={n:9..22} %; driver={name}; hours={n:3..14} h; rain={n:0..9} mm",
         "{yield} of {crop} came from {field}."),
        ("Audit", "!auditor={name}; !area=stores|payroll|travel|sales; files={n:20..300}; !errors={n:2..60} errors; !worth={n:100..9900} EUR; days={n:1..9}; place={place}",
         "{auditor} found {errors} in {area}, worth {worth}."),
        ("Rescue", "!person={name}; !place={place}; !injury=ankle|wrist|shock|cut; time={time}; !waited={n:10..90} min; team={n:2..12}; weather=fog|snow|clear",
         "{person} was saved at {place} with {injury} after {waited}."),
        ("Weather station", "!station=W{n:10..99}; !rain={n:2..80} mm; !wind={n:10..120} km/h; pressure={n:980..1040} hPa; low={n:1..9} C; high={n:10..30} C; observer={name}",
         "Station {station}: {rain} of rain, wind {wind}."),
        ("Machine order", "!machine=press|lathe|saw|mixer; !price={n:1000..9900} EUR; !supplier={name}; !delivery=in {n:2..20} weeks; warranty={n:1..5} years; power={n:2..40} kW; voltage={n:220..400} V",
         "A {machine} from {supplier} for {price}, due {delivery}."),
        ("Exam results", "!course=maths|physics|history|art; !passed={n:10..95} passed; !failed={n:1..9} failed; mean={n:2..4}.{n:1..9}; examiner={name}; room={n:1..60}; duration={n:60..180} min",
         "In {course} {passed} and {failed}."),
        ("Battery test", "!cell=cell {n:10..99}; !capacity={n:20..95} Ah; !cycles={n:100..990} cycles; heat={n:20..60} C; tester={name}; current={n:2..40} A; place={place}",
         "The {cell} kept {capacity} after {cycles}."),
    )
)  # fmt: skip


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The first `n` notes of a split, no prompt twice."""
    rng = random.Random(f"{split} {seed}")
    found: list[Example] = []
    seen: set[str] = set()
    while len(found) < n:
        example = make_example(split, len(found), rng)
        if example.prompt not in seen:
            seen.add(example.prompt)
            found.append(example)
    return found


def make_example(split: str, number: int, rng: random.Random) -> Example:
    """One note with its summary and the facts that a summary must have."""
    kind, layout, opening = rng.choice(KINDS), rng.choice(LAYOUTS[split]), rng.choice(OPENINGS[split])
    fields: list[tuple[str, str]] = []
    keys: dict[str, str] = {}
    for part in re.split(r"; (?=!?\w)| (?=!)", kind.fields):
        key, part = part.startswith("!"), part.lstrip("!").rstrip(";")
        label, spec = part.split("=", 1)
        value = _value(spec, split, rng)
        fields.append((label, value))
        if key:
            keys[label.split()[0]] = value
    rng.shuffle(fields)
    lines = [layout.format(label=label, value=value) for label, value in fields]
    for remark in rng.sample(REMARKS[split].split("|"), rng.choice((0, 1, 2))):
        lines.insert(rng.randint(0, len(lines)), layout.split("{")[0] + remark)
    day = f"{rng.randint(1, 28)} {rng.choice(('March', 'May', 'June', 'August', 'October'))}"
    title = opening.format(title=kind.title, day=day)
    said = kind.said.format(**keys)
    limit = len(said.split()) + rng.choice((4, 6, 8))
    prompt = f"{INSTRUCTION.format(limit=limit)}\n\n{title}\n" + "\n".join(lines)
    facts = [_alternatives(value) for name, value in keys.items() if f"{{{name}}}" in kind.said]
    group = f"{kind.title} {split} {layout} {opening}"
    return Example(
        f"briefs-{split}-{number}", prompt, said[0].upper() + said[1:], group, {"max_words": limit, "facts": facts}
    )


def _alternatives(value: str) -> str | list[str]:
    """A fact as it stands in the note, or with other ways to say it."""
    if match := re.fullmatch(r"(?:all out in|in|pH|grade) (.+)", value):
        return [value, match[1]]
    if match := re.fullmatch(r"(\d+) (damaged|missing|wasted|passed|failed)", value):
        n, word = match.groups()
        return [value, f"{word} {n}", f"{n} were {word}", f"{n} are {word}", f"{n} have {word}", f"{word}: {n}"]
    if match := re.fullmatch(r"(\w+) to (\w+)", value):
        return [value, f"{match[1]}-{match[2]}", f"{match[1]} and {match[2]}"]
    if match := re.fullmatch(r"(.+) late", value):
        return [value, f"delayed {match[1]}", f"delayed by {match[1]}", f"delay of {match[1]}", f"late by {match[1]}"]
    return value


def _value(spec: str, split: str, rng: random.Random) -> str:
    spec = rng.choice(spec.split("|"))
    spec = spec.replace("{name}", rng.choice(NAMES[split].split(","))).replace(
        "{place}", rng.choice(PLACES[split].split(","))
    )
    spec = spec.replace("{time}", f"{rng.randint(6, 22):02}:{rng.choice((5, 10, 20, 25, 40, 50)):02}")
    return re.sub(r"\{n:(\d+)\.\.(\d+)\}", lambda m: str(rng.randint(int(m[1]), int(m[2]))), spec)
