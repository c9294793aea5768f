"""Write the data of the task `long_answers`: open questions. `python research/make_tasks.py long_answers` runs it.

Each subject has words that a text about it will use. A prompt is a subject with a kind of text and a length. Subjects are
split, so that no subject of the test prompts occurs in training.
"""

from __future__ import annotations

import random

from dpo_workbench.tasks.task import Example

SEEDS = {"train": 0, "dev": 1, "test": 3}
SIZES = {"train": 400, "dev": 70, "test": 190}
SHARES = {"train": 80, "dev": 14, "test": 38}  # subjects of each split
WORDS = (40, 50, 60, 80)  # the least number of words that a prompt asks for
KINDS = (
    "Explain {subject} to a curious twelve-year-old.",
    "Write a short article about {subject} for a local newspaper.",
    "Give an overview of {subject} for someone who has never heard of it.",
    "Explain why {subject} can matter to people. Give your reasons.",
    "Write a letter to a friend in which you describe {subject}.",
    "Prepare the text of a short talk about {subject}.",
    "Describe {subject} for the leaflet of a small museum.",
    "What should everybody know about {subject}?",
)
LENGTHS = ("Write at least {n} words.", "Use {n} words or more.", "Your text must have at least {n} words.")

# subject: words that belong to it; spellings that count as the same word are separated by a bar
SUBJECTS = """
bread: flour, dough, yeast|sourdough, oven|bake|baking|baked, wheat|grain, knead, bakery|baker, loaf|loaves
coral reefs: fish, ocean|sea, algae, bleach, temperature|warm, species|biodiversity, polyp, skeleton|calcium
bicycles: wheel, pedal, chain, frame, ride|riding|cycling, brake, tire|tyre, transport|commut
volcanoes: lava, magma, erupt, ash, crater, mountain, tectonic|plate, gas
libraries: book, read, borrow|lend, shelf|shelves, librarian, community|public, knowledge|information, study|research
honey bees: hive|colony, honey, nectar, pollen|pollinat, queen, worker, flower, wax
the water cycle: evapor, condens, rain|precipitation, cloud, river|ocean|sea, vapor|vapour, sun, ground
glass: sand|silica, melt|furnace|heat, transparent|clear, window, bottle, blow|blown, recycl, molten
bridges: river, span, arch, steel, support|pillar|pier, load|weight, cable|suspension, engineer
the moon: earth, orbit, phase, crater, tide, gravity, surface, astronaut|apollo
chess: board, piece, king, queen, checkmate, move, opponent, strategy
tea: leaf|leaves, brew|steep, cup, water, black|green, plant|camellia, caffeine, flavor|flavour
earthquakes: fault, plate|tectonic, seismic, magnitude|richter, shake|shaking, building, epicent, damage
wool: sheep, spin|spun|yarn, warm, shear, fiber|fibre, knit|weav, dye, cloth|garment
the human heart: blood, pump, chamber|ventricle|atri, beat, oxygen, artery|arteries|vein, valve, muscle
lighthouses: ship|sailor, light|lamp, coast|shore, tower, navigat, keeper, rock|danger, lens|beam
photosynthesis: light|sunlight, plant, carbon dioxide|co2, oxygen, chlorophyll, water, glucose|sugar, leaf|leaves
paper: wood|tree|pulp, fiber|fibre, sheet, print|writ, recycl, ancient|china, mill|press, book
kites: wind, string|line, fly|flying|flew, tail, frame, sky, fabric|paper, lift
public parks: tree, walk, bench, play, green|nature, community, city, path|trail
the compass: north, magnet, needle, direction, navigat, earth, map, sailor|ship|travel
rice: grain, paddy|paddies|field, cook, asia, water, harvest, crop|plant, diet|food
trains: rail|track, locomotive|engine, passenger, station, freight|cargo, steam|electric, speed, travel
sleep: brain, dream, rest, night, memory, hour, body, health
clocks: time, hour, hand|dial, pendulum, gear|mechanism, minute|second, tower, spring|quartz
rainforests: tree, species|animal, rain, canopy, plant, climate, amazon, deforest
soap: water, oil|fat, clean|wash, lye, skin, bubble|lather, bar|liquid, dirt|germ|bacteria
the printing press: book, gutenberg, type, ink, page|paper, spread|knowledge, movable, copy|copies
whales: ocean|sea, mammal, breath|blowhole, song|sound, migrat, krill|plankton, size|large|largest, calf|calves
salt: food|flavor|flavour, sea|ocean, preserv, sodium, mineral, mine|mining, taste, trade
gardens: plant, flower, soil, water, seed, vegetable, season, tree
glaciers: ice, snow, mountain|valley, melt, climate, slow|move|flow, water, freshwater|sea level
the telescope: star, lens|mirror, light, astronom, galileo, planet|galaxy|galaxies, observe|observ, magnif
chocolate: cocoa|cacao, bean, sugar|sweet, bar, milk, taste|flavor|flavour, melt, roast
recycling: waste, plastic, paper, glass, landfill, reuse|reduc, energy|resource, environment
owls: night|nocturnal, eye, prey, wing|flight|fly, hear, feather, mouse|mice|rodent, hoot|call
silk: worm|silkworm|cocoon, thread|fiber|fibre, fabric|cloth, china, weav, trade|road, soft|smooth, mulberry
windmills: wind, blade|sail, energy|power|electric, grind|mill, turbine, rotat|turn, farm|rural, water|pump
the piano: key, string, hammer, music, play, pedal, note|sound, composer|concert
ants: colony|colonies, queen, worker, nest, food, soldier, trail|scent|pheromone, insect
maps: place|location, scale, symbol|legend, direction|north, navigat, border|country|countries, city|road, cartograph
coffee: bean, roast, brew, cup, caffeine, plant|tree, flavor|flavour|aroma, drink
dams: river, water, reservoir|lake, electric|hydroelectric|power, flood, concrete|wall, irrigat, fish
butterflies: wing, caterpillar, flower|nectar, metamorph|cocoon|chrysalis, egg, color|colour, insect, migrat|monarch
vaccines: immune, disease, virus|bacteria, antibod, protect, dose|shot|inject, spread|outbreak, health
deserts: sand, dry|arid, rain, heat|hot, animal, plant|cactus|cacti, camel, night|temperature
gold: metal, jewelry|jewellery, mine|mining, coin, value|precious, yellow|shiny, wealth|trade, electron
electric cars: battery|batteries, charg, emission|pollution, motor, range, driv, gasoline|petrol|fuel, cost
theatre: stage, actor|actress, play, audience, costume, director, script|dialogue, scene
spiders: web, silk, leg, prey|insect, venom, eye, species, spin
rivers: water, flow, source|spring|mountain, sea|ocean, bank, fish, flood, valley|land
the violin: string, bow, music, wood, orchestra, play, note|sound|tone, neck|chin|shoulder
cheese: milk, curd, cow|goat|sheep, aged|aging|ripen, flavor|flavour|taste, rennet|bacteria|cultur, cheddar|brie|mozzarella, fat|protein
solar panels: sun, electric|energy|power, cell|photovoltaic, roof, silicon, light, renewable|clean, cost|save
castles: wall, king|lord|knight, tower, moat, defen, medieval|middle ages, stone, siege|attack
penguins: antarctic, swim, fish, feather, egg|chick, colony|colonies, ice|cold, flightless|wing
the alphabet: letter, sound, writ, word, vowel|consonant, language, greek|phoenician|latin, read
wheat: grain, flour, bread, field|farm, harvest, crop, seed|plant, food
airplanes: wing, engine, pilot, fly|flight, passenger, lift, airport, speed
the brain: neuron|nerve, memory, thought|think, cell, body, signal, cerebr|cortex, learn
umbrellas: rain, handle, fabric|canopy, fold|open, sun|shade, wet|dry, frame|rib, wind
oak trees: acorn, leaf|leaves, wood, forest, root|trunk, branch, squirrel|animal|bird, years|old|centur
sharks: fish, teeth, ocean|sea, fin, predator|prey, species, cartilage, attack|danger
museums: exhibit|collection, art, history, visitor, object|artifact, culture, learn|educat, curator|preserv
candles: wax, wick, flame, light, burn, melt, scent, dark
potatoes: soil|ground, plant, tuber|root, boil|fry|fried|bake|mash, farm|crop, starch|carbohydrate, peru|andes|south america, food
the steam engine: steam, water|boiler, coal, piston, watt, factory|factories|industr, train|locomotive, pressure|heat
stars: light, sun, galaxy|galaxies, hydrogen|helium, gravity, fusion, sky|night, constellation
rubber: tree|latex, elastic|stretch|flexible, tire|tyre, sap, vulcaniz|vulcanis, waterproof, synthetic, plantation
dolphins: ocean|sea, swim, mammal, intelligen, sound|echolocation|click, pod, fish, fin
schools: student|pupil, teacher, learn, class, book|lesson, knowledge|education, friend, community
sugar: sweet, cane|beet, energy, taste, food, health|diabet, crystal, plant
fire fighters: fire, water|hose, rescue, smoke, truck|engine, train, danger|brave, building
mushrooms: fungi|fungus, spore, cap, soil|wood, edible, poison|toxic, forest, grow
the internet: computer, website|web, information, network, email, communicat, connect, online
horses: ride|riding|rider, stable|farm, gallop|run, hoof|hooves, mane|tail, saddle, breed, work|transport
marble: stone|rock, sculpt|statue, limestone, quarry|quarries, polish, building|architect, vein|pattern, white
frogs: pond|water, tadpole, egg, insect, jump|leap, skin, amphibian, croak|call
ice cream: milk|cream, sugar|sweet, cold|frozen|freez, flavor|flavour, cone|scoop, vanilla|chocolate, summer, melt
lightning: cloud, storm|thunder, electric|charge, flash|light, strike, ground, rod, danger
carpets: wool|fiber|fibre, weav|woven|knot, floor, pattern|design, color|colour, loom, room|home, persia|orient
elephants: trunk, tusk|ivory, herd, africa|asia, ear, calf|calves|matriarch, poach|conservation, large|largest
swimming: water, pool, stroke|breaststroke|backstroke, breath, muscle, arm|leg, exercise|fitness|health, safe|drown
newspapers: news, article|story|stories, journalist|reporter, print, reader, edit, event, page|headline
olives: oil, tree, fruit, mediterranean, press|harvest, green|black, salt|brine|cure, food|taste
submarines: water|underwater|sea|ocean, dive|submerge, hull, crew, torpedo|navy|military, periscope|sonar, ballast|pressure, nuclear|engine
wolves: pack, hunt|prey, howl, forest|wild, pup, alpha|leader, dog, territor
post offices: letter|mail, stamp, deliver, package|parcel, address, carrier|postman, send, customer
fossils: rock, dinosaur|animal, bone, ancient|million, layer|sediment, scientist|paleontolog, plant, evolution|evolv
dentists: teeth|tooth, clean, cavity|cavities, patient, gum, brush|floss, health, pain|drill
fog: water|droplet, visib, air, cloud, cold|cool|temperature, road|driv|ship, ground, morning
bamboo: plant|grass, grow, panda, asia|china, strong|strength, building|construct|furniture, stem|shoot, sustainable
guitars: string, chord, music, fret|neck, pick|strum|pluck, wood|body, acoustic|electric, play
turtles: shell, egg, sea|ocean|water, swim, beach|nest, slow, reptile, species
markets: stall|vendor|seller, fruit|vegetable, buy|sell, price, fresh|local, customer|crowd|people, food, trade|goods
cotton: plant, fiber|fibre, cloth|fabric|textile, field|crop, seed, soft, spin|weav, pick|harvest
hospitals: doctor, nurse, patient, surg, emergency, treat|care, medicine|medical, bed
tides: moon, sea|ocean|water, gravity, high, low, sun, beach|coast|shore, earth
apples: tree, fruit, orchard, juice|cider, red|green, pie, seed|core, sweet
batteries: energy, charge|charging, electr, lithium, chemical, phone|device, power, recycl
wedding customs: bride, groom, ring, dress, ceremony, guest|family, vow, tradition
canals: boat|ship|barge, water, lock, trade|transport, dig|dug|built, river, venice|panama|suez, goods|cargo
foxes: den, tail, red|fur, night|nocturnal, prey|hunt, forest, cunning|clever|sly, cub|kit
poetry: word, rhyme, poet, verse|line|stanza, emotion|feeling, metaphor|imagery, language, rhythm|meter
concrete: cement, water, sand|gravel|aggregate, build, strong|strength, road|bridge, pour|mix, steel|reinforc
running: shoe, mile|kilometer|distance, race|marathon, muscle|leg, heart, breath, health|fitness, pace|speed
eggs: chicken|hen, shell, yolk, white, protein, boil|fry|fried|scrambl, nest, breakfast|cook
juries: court|trial, verdict, evidence, judge, guilty|innocent|guilt, citizen, law|legal, decision|decide
origami: paper, fold, japan, crane, shape, art, square|sheet, pattern|design
icebergs: ice, ocean|sea|water, glacier, ship|titanic, float, melt, below|underwater|surface, antarctic|arctic|greenland
robots: machine, factory|factories|industr, sensor, program|software, task, human, arm|motor, artificial intelligence|computer
pottery: clay, kiln|fire|fired, wheel, glaze, bowl|vase|pot, shape|mold|mould, hand, ceramic
sundials: sun, shadow, hour|time, dial, gnomon, clock, angle, ancient
harbours: ship|boat, port, cargo|goods, dock, sea|water, fish, storm|shelter, trade
parrots: feather, color|colour, talk|mimic|speak, beak, bird, tropical|forest, cage|pet, seed|nut
the flute: music, breath|blow, hole, sound|note|tone, wood|silver|metal, finger, play, instrument
mountains: peak|summit, climb|hik, snow, valley, rock, range, altitude|height|high, forest
ferries: passenger, water|river|sea, boat|ship, island, car|vehicle, cross, port|dock, captain|crew
dictionaries: word, meaning|definition, language, alphabet, spell, page|entry|entries, pronounc, book
snow: ice|crystal, winter, cold|freez, flake, white, ski|sled, melt, cloud
wine: grape, ferment, bottle, vineyard, red, barrel, taste|flavor|flavour, yeast
lions: pride, mane, africa|savanna, hunt|prey, cub, roar, king|predator, lioness
mirrors: reflect, glass, silver, image, light, surface, wall|bathroom, telescope|look
rainbows: light, rain, color|colour, sun, red, refract|prism|bend, water|droplet, arc|sky
tailors: cloth|clothes|fabric, sew|stitch, needle|thread, measure, suit|dress, customer|client, fit, cut
zoos: animal, visitor, cage|enclosure|habitat, species, conservation|endangered, keeper, learn|educat, wild
elections: vote|voter|voting, candidate, party|parties, ballot, government, citizen, campaign, president|parliament
onions: layer, cook, tear|cry, soup|dish|salad, bulb|plant, flavor|flavour|taste, slice|chop|cut, red|white|yellow
caves: rock|limestone, dark, bat, water, stalactite|stalagmite, explor, underground, paint|fossil
anchors: ship|boat|vessel, chain|rope, seabed|bottom|sea floor, hold, iron|steel|metal, drop|weigh, wind|current|drift, harbor|harbour|port
"""


def subjects(split: str) -> list[tuple[str, list[list[str]]]]:
    """(subject, its words with their spellings) of one split."""
    lines = [line.split(": ", 1) for line in SUBJECTS.strip().split("\n")]
    random.Random(7).shuffle(lines)
    first = sum(n for name, n in SHARES.items() if list(SHARES).index(name) < list(SHARES).index(split))
    chosen = lines[first : first + SHARES[split]]
    return [(name, [word.split("|") for word in words.split(", ")]) for name, words in chosen]


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """n prompts of a split. Each subject has as many as every other; kinds and lengths are drawn."""
    rng, found = random.Random(seed), []
    chosen = subjects(split)
    per_subject = n // len(chosen)
    for subject, words in chosen:
        for kind in rng.sample(KINDS, per_subject):
            least = rng.choice(WORDS)
            prompt = f"{kind.format(subject=subject)} {rng.choice(LENGTHS).format(n=least)}"
            found.append((subject, prompt, {"least": least, "words": words}))
    rng.shuffle(found)
    return [
        Example(f"long-{split}-{k}", prompt, "", group=subject, extra=extra)
        for k, (subject, prompt, extra) in enumerate(found)
    ]
