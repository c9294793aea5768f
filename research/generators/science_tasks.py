"""Write the data of the task `science`: quantitative problems with units. `python research/make_tasks.py science` runs it.

A family is one relation between quantities. Each has four wordings: two for train, one for dev, one for test; things and
people differ too. Numbers are drawn so that the result has few digits. An answer shows each step and ends on a quantity.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from dpo_workbench.tasks.quantities import arithmetic
from dpo_workbench.tasks.science import INSTRUCTION
from dpo_workbench.tasks.task import Example

SEEDS = {"train": 0, "dev": 1, "test": 3}
SIZES = {"train": 1400, "dev": 200, "test": 320}
MENTAL = 12  # above it numbers have one digit and zeros, so that each step is one a person does without paper
THINGS = {
    "mover": {"train": "cyclist,tram,runner,drone,ferry,skater", "dev": "rower,scooter", "test": "van,horse,glider"},
    "body": {"train": "crate,cart,stone,sledge,barrel", "dev": "trunk,log", "test": "wagon,boulder,safe"},
    "device": {"train": "heater,lamp,motor,pump", "dev": "kettle,fan", "test": "drill,toaster,winch"},
    "salt": {"train": "sodium nitrate,potassium iodide,glucose", "dev": "urea", "test": "sucrose,copper sulfate"},
    "cell": {"train": "amoeba,pollen grain,yeast cell", "dev": "diatom", "test": "paramecium,nerve cell"},
    "animal": {"train": "voles,frogs,beetles,finches", "dev": "crabs", "test": "newts,moths,trout"},
    "place": {"train": "Arda,Venn,Colm,Tessa", "dev": "Orrin", "test": "Ilmen,Sarno"},
}


@dataclass(frozen=True)
class Family:
    """`draw`: variables in order, as ranges or formulas; `steps`: what is computed, the last is the answer."""

    name: str
    science: str
    draw: str
    steps: str
    unit: str
    said: str


FAMILIES = tuple(
    Family(*entry)
    for entry in (
        # physics
        ("speed", "physics", "v=2..30 t=2..12 d=v*t", "v = d / t", "m/s",
         "A {mover} covers {d} m in {t} s. What is its speed in m/s? | In {t} s a {mover} travels {d} m. How fast is it, in m/s? | It takes a {mover} {t} s for {d} m. Give the speed in m/s. | A {mover} needs {t} s to go {d} m. Find its speed in m/s."),
        ("distance", "physics", "v=2..30 t=2..12", "d = v * t", "m",
         "A {mover} moves at {v} m/s for {t} s. How far does it get, in m? | How many m does a {mover} go in {t} s at {v} m/s? | At {v} m/s, what distance in m does a {mover} cover in {t} s? | For {t} s a {mover} keeps {v} m/s. Find the distance in m."),
        ("time", "physics", "v=2..30 t=2..12 d=v*t", "t = d / v", "s",
         "A {mover} goes {d} m at {v} m/s. How long does it take, in s? | How many s does a {mover} need for {d} m at {v} m/s? | At {v} m/s, after what time in s has a {mover} gone {d} m? | A {mover} with {v} m/s has {d} m to go. Find the time in s."),
        ("to metres per second", "physics", "a=2..30 v=a*3.6", "u = v / 3.6", "m/s",
         "A {mover} goes {v} km/h. What is that in m/s? | Convert the {v} km/h of a {mover} to m/s. | How many m/s are the {v} km/h of a {mover}? | A {mover} shows {v} km/h. Express it in m/s."),
        ("acceleration", "physics", "a=1..9 t=2..9 u=1..9 v=u+a*t", "a = (v - u) / t", "m/s^2",
         "A {mover} speeds up from {u} m/s to {v} m/s in {t} s. What is its acceleration in m/s^2? | In {t} s a {mover} goes from {u} m/s to {v} m/s. Give the acceleration in m/s^2. | What acceleration in m/s^2 takes a {mover} from {u} m/s to {v} m/s within {t} s? | A {mover} needs {t} s from {u} m/s to {v} m/s. Find the acceleration in m/s^2."),
        ("force", "physics", "m=2..40 a=1..9", "F = m * a", "N",
         "What force in N gives a {body} of {m} kg an acceleration of {a} m/s^2? | A {body} of {m} kg accelerates at {a} m/s^2. What is the force in N? | How many N accelerate a {m} kg {body} at {a} m/s^2? | A {m} kg {body} gains {a} m/s^2. Find the force in N."),
        ("mass from force", "physics", "m=2..40 a=2..9 F=m*a", "m = F / a", "kg",
         "A force of {F} N gives a {body} {a} m/s^2. What is its mass in kg? | What is the mass in kg of a {body} that {F} N accelerate at {a} m/s^2? | Under {F} N a {body} accelerates at {a} m/s^2. Give its mass in kg. | A {body} answers {F} N with {a} m/s^2. Find the mass in kg."),
        ("weight", "physics", "m=2..60", "W = m * 10", "N",
         "What is the weight in N of a {body} of {m} kg? Take g = 10 m/s^2. | A {body} has a mass of {m} kg. With g = 10 m/s^2, what does it weigh in N? | With g = 10 m/s^2, how many N does a {m} kg {body} weigh? | A {m} kg {body} rests where g = 10 m/s^2. Find its weight in N."),
        ("kinetic energy", "physics", "m=2..20 v=2..9", "E = 0.5 * m * v^2", "J",
         "A {body} of {m} kg moves at {v} m/s. What is its kinetic energy in J? | What kinetic energy in J has a {m} kg {body} at {v} m/s? | At {v} m/s, how much kinetic energy in J does a {body} of {m} kg carry? | A {m} kg {body} slides at {v} m/s. Find the kinetic energy in J."),
        ("potential energy", "physics", "m=2..20 h=2..12", "E = m * 10 * h", "J",
         "A {body} of {m} kg is lifted {h} m. With g = 10 m/s^2, what energy in J does it gain? | What potential energy in J does a {m} kg {body} gain over {h} m, with g = 10 m/s^2? | With g = 10 m/s^2, how many J does it take to raise a {body} of {m} kg by {h} m? | A {m} kg {body} goes up {h} m where g = 10 m/s^2. Find the gain of energy in J."),
        ("work", "physics", "F=5..60 d=2..12", "W = F * d", "J",
         "A force of {F} N pulls a {body} over {d} m. What work in J does it do? | What is the work in J of {F} N along {d} m on a {body}? | Over {d} m a {body} is pushed with {F} N. Give the work in J. | A {body} is dragged {d} m by {F} N. Find the work in J."),
        ("power", "physics", "P=5..60 t=2..12 E=P*t", "P = E / t", "W",
         "A {device} uses {E} J in {t} s. What is its power in W? | In {t} s a {device} turns over {E} J. Give the power in W. | How many W has a {device} that takes {E} J every {t} s? | A {device} draws {E} J within {t} s. Find its power in W."),
        ("energy used", "physics", "P=5..90 t=2..12", "E = P * t", "J",
         "A {device} of {P} W runs for {t} s. How much energy in J does it use? | What energy in J does a {P} W {device} take in {t} s? | During {t} s a {device} works at {P} W. Give the energy in J. | A {P} W {device} is on for {t} s. Find the energy in J."),
        ("momentum", "physics", "m=2..40 v=2..12", "p = m * v", "kg*m/s",
         "What is the momentum in kg*m/s of a {body} of {m} kg at {v} m/s? | A {body} of {m} kg moves at {v} m/s. Give its momentum in kg*m/s. | At {v} m/s, what momentum in kg*m/s has a {m} kg {body}? | A {m} kg {body} rolls at {v} m/s. Find the momentum in kg*m/s."),
        ("density", "physics", "r=2..12 V=2..12 m=r*V", "r = m / V", "g/cm^3",
         "A sample of {V} cm^3 has {m} g. What is its density in g/cm^3? | What density in g/cm^3 has a piece of {m} g and {V} cm^3? | {m} g fill {V} cm^3. Give the density in g/cm^3. | A lump takes {V} cm^3 and has {m} g. Find its density in g/cm^3."),
        ("pressure", "physics", "p=5..60 A=2..9 F=p*A", "p = F / A", "Pa",
         "A {body} presses with {F} N on {A} m^2. What is the pressure in Pa? | What pressure in Pa do {F} N of a {body} make on {A} m^2? | On {A} m^2 rests a {body} with {F} N. Give the pressure in Pa. | A {body} spreads {F} N over {A} m^2. Find the pressure in Pa."),
        ("voltage", "physics", "I=2..12 R=2..30", "U = R * I", "V",
         "A current of {I} A flows through {R} ohm. What is the voltage in V? | What voltage in V drives {I} A through a {device} of {R} ohm? | Through {R} ohm go {I} A. Give the voltage in V. | A {device} of {R} ohm carries {I} A. Find the voltage in V."),
        ("current", "physics", "I=2..12 R=2..30 U=I*R", "I = U / R", "A",
         "What current in A flows through {R} ohm at {U} V? | A {device} of {R} ohm is on {U} V. Give its current in A. | At {U} V, how many A pass a {device} of {R} ohm? | A {device} has {R} ohm and {U} V. Find the current in A."),
        ("electric power", "physics", "U=3..24 I=2..12", "P = U * I", "W",
         "A {device} takes {I} A at {U} V. What is its power in W? | What power in W has a {device} on {U} V with {I} A? | On {U} V a {device} draws {I} A. Give the power in W. | A {device} runs with {I} A on {U} V. Find its power in W."),
        ("series", "physics", "a=2..40 b=2..40 c=2..40", "R = a + b + c", "ohm",
         "Resistors of {a}, {b} and {c} ohm are in series. What is the total in ohm? | What is the resistance in ohm of {a}, {b} and {c} ohm in a row? | In series stand {a} ohm, {b} ohm and {c} ohm. Give the whole resistance in ohm. | A chain has {a}, {b} and {c} ohm. Find its resistance in ohm."),
        ("charge", "physics", "I=2..12 t=2..30", "Q = I * t", "C",
         "What charge in C does a current of {I} A carry in {t} s? | A {device} takes {I} A for {t} s. Give the charge in C. | In {t} s, how many C pass at {I} A? | For {t} s a {device} carries {I} A. Find the charge in C."),
        ("wave speed", "physics", "f=2..40 l=2..12", "v = f * l", "m/s",
         "A wave of {l} m has a frequency of {f} Hz. What is its speed in m/s? | What speed in m/s has a wave with {f} Hz and {l} m wavelength? | With {f} Hz and {l} m of wavelength, give the speed of the wave in m/s. | A wave repeats at {f} Hz every {l} m. Find its speed in m/s."),
        ("spring", "physics", "k=5..60 x=2..9", "F = k * x", "N",
         "A spring of {k} N/cm is stretched by {x} cm. What is the force in N? | What force in N stretches a spring of {k} N/cm by {x} cm? | By {x} cm a spring of {k} N/cm is pulled out. Give the force in N. | A {k} N/cm spring grows by {x} cm. Find the force in N."),
        ("torque", "physics", "F=5..60 r=2..9", "M = F * r", "N*m",
         "A force of {F} N acts {r} m from a pivot. What is the moment in N*m? | What moment in N*m do {F} N have at {r} m from the pivot? | At {r} m from a pivot pull {F} N. Give the moment in N*m. | A lever of {r} m bears {F} N at its end. Find the moment in N*m."),
        ("heat", "physics", "m=2..9 c=2..5 T=2..20", "Q = m * c * T", "kJ",
         "How much heat in kJ warms {m} kg by {T} K, at {c} kJ/(kg K)? | {m} kg with {c} kJ/(kg K) are warmed by {T} K. Give the heat in kJ. | By {T} K, how many kJ warm {m} kg of {c} kJ/(kg K)? | A block of {m} kg and {c} kJ/(kg K) gains {T} K. Find the heat in kJ."),
        ("efficiency", "physics", "e=10..90 E=200..200 u=e*2", "e = 100 * u / E", "%",
         "A {device} takes {E} J and gives {u} J of use. What is its efficiency in %? | Of {E} J a {device} makes {u} J useful. Give the efficiency in %. | What percentage of {E} J does a {device} use that gives {u} J? Answer in %. | A {device} turns {E} J into {u} useful J. Find the efficiency in %."),
        # chemistry
        ("moles", "chemistry", "n=2..12 M=10..60 m=n*M", "n = m / M", "mol",
         "How many mol are {m} g of a substance of {M} g/mol? | {m} g of a solid with {M} g/mol: what amount in mol is that? | At {M} g/mol, give the amount in mol of {m} g. | A flask holds {m} g of {M} g/mol. Find the amount in mol."),
        ("mass of moles", "chemistry", "n=2..12 M=10..60", "m = n * M", "g",
         "What is the mass in g of {n} mol at {M} g/mol? | A substance has {M} g/mol. How many g are {n} mol? | Of a solid with {M} g/mol, give the mass in g of {n} mol. | A recipe asks for {n} mol of {M} g/mol. Find the mass in g."),
        ("concentration", "chemistry", "c=2..12 V=2..9 n=c*V", "c = n / V", "mol/L",
         "{n} mol of {salt} are in {V} L. What is the concentration in mol/L? | What concentration in mol/L has {V} L of solution with {n} mol of {salt}? | In {V} L are {n} mol of {salt}. Give the concentration in mol/L. | A tank of {V} L holds {n} mol of {salt}. Find the concentration in mol/L."),
        ("amount in solution", "chemistry", "c=2..12 V=2..12", "n = c * V", "mol",
         "How many mol of {salt} are in {V} L at {c} mol/L? | What amount in mol of {salt} is in {V} L of {c} mol/L? | At {c} mol/L, give the mol of {salt} in {V} L. | A tank holds {V} L of {salt} at {c} mol/L. Find the amount in mol."),
        ("dilution", "chemistry", "d=1..6 k=2..6 V=2..9 c=d*k W=V*k", "d = c * V / W", "mol/L",
         "{V} L of {salt} at {c} mol/L are filled up to {W} L. What is the new concentration in mol/L? | What concentration in mol/L results when {V} L of {c} mol/L {salt} become {W} L? | Water is added to {V} L of {salt} of {c} mol/L, up to {W} L. Give the concentration in mol/L. | {V} L of {c} mol/L {salt} are thinned to {W} L. Find the concentration in mol/L."),
        ("mass concentration", "chemistry", "r=2..30 V=2..9 m=r*V", "r = m / V", "g/L",
         "{m} g of {salt} are dissolved to {V} L. How many g/L is that? | What is the concentration in g/L of {m} g {salt} in {V} L? | In {V} L are {m} g of {salt}. Give the g/L. | A tank of {V} L holds {m} g of {salt}. Find the concentration in g/L."),
        ("molar mass", "chemistry", "a=1..6 b=1..12 c=1..6", "M = a * 12 + b * 1 + c * 16", "g/mol",
         "What is the molar mass in g/mol of C{a}H{b}O{c}? Take C = 12, H = 1, O = 16. | With C = 12, H = 1 and O = 16, give the molar mass of C{a}H{b}O{c} in g/mol. | C = 12, H = 1, O = 16: how many g/mol has C{a}H{b}O{c}? | Take H = 1, C = 12, O = 16. Find the molar mass of C{a}H{b}O{c} in g/mol."),
        ("mass share", "chemistry", "w=2..60 T=50..50 m=w*0.5", "w = 100 * m / T", "%",
         "{T} g of ore hold {m} g of metal. What is the share of metal in %? | Of {T} g of an alloy {m} g are tin. Give its share in %. | What percentage of {T} g are {m} g of {salt}? Answer in %. | A mix of {T} g has {m} g of {salt}. Find its share in %."),
        ("gas volume", "chemistry", "n=2..12", "V = n * 24", "L",
         "What volume in L do {n} mol of a gas take at 24 L/mol? | At 24 L/mol, how many L are {n} mol of gas? | A gas takes 24 L/mol. Give the volume in L of {n} mol. | {n} mol of gas form at 24 L/mol. Find the volume in L."),
        ("boyle", "chemistry", "q=2..9 k=2..6 V=2..9 p=q*k W=V*k", "q = p * V / W", "bar",
         "A gas at {p} bar grows from {V} L to {W} L at one temperature. What is its pressure in bar? | At constant temperature {V} L of gas at {p} bar become {W} L. Give the pressure in bar. | What pressure in bar has a gas that grew from {V} L at {p} bar to {W} L, as warm as before? | A piston lets {V} L of gas at {p} bar out to {W} L, at one temperature. Find the pressure in bar."),
        ("yield", "chemistry", "y=10..90 t=200..200 m=y*2", "y = 100 * m / t", "%",
         "A reaction gives {m} g where {t} g were possible. What is the yield in %? | Of {t} g that could form, {m} g formed. Give the yield in %. | What yield in % are {m} g out of {t} g possible? | {t} g were due and {m} g came. Find the yield in %."),
        ("reaction rate", "chemistry", "r=2..12 t=2..12 n=r*t", "r = n / t", "mol/s",
         "{n} mol of gas form in {t} s. What is the rate in mol/s? | In {t} s a reaction makes {n} mol. Give its rate in mol/s. | What rate in mol/s makes {n} mol within {t} s? | A reaction needs {t} s for {n} mol. Find the rate in mol/s."),
        ("reaction heat", "chemistry", "n=2..9 H=20..90", "Q = n * H", "kJ",
         "{n} mol react and give {H} kJ/mol. How much heat in kJ is that? | At {H} kJ/mol, what heat in kJ do {n} mol give? | A fuel gives {H} kJ/mol. Give the heat in kJ of {n} mol. | {n} mol burn with {H} kJ/mol. Find the heat in kJ."),
        # biology
        ("magnification", "biology", "k=2..40 a=2..9 i=k*a", "k = i / a", "",
         "A {cell} of {a} mm is drawn {i} mm long. What is the magnification? | In a picture a {cell} has {i} mm, in truth {a} mm. Give the magnification. | How many times larger is the picture of {i} mm than the {cell} of {a} mm? | A {cell} of {a} mm fills {i} mm of a photo. Find the magnification."),
        ("real size", "biology", "a=2..40 k=5..40 i=a*k", "a = i / k", "mm",
         "A {cell} is {i} mm long in a picture magnified {k} times. What is its size in mm? | Magnified {k} times, a {cell} shows {i} mm. Give its real size in mm. | What size in mm has a {cell} that shows {i} mm at {k} times? | At {k} times a {cell} measures {i} mm. Find its true size in mm."),
        ("cardiac output", "biology", "f=50..120 s=50..90", "o = f * s", "mL/min",
         "A heart beats {f} times a minute and moves {s} mL a beat. How many mL/min is that? | With {s} mL a beat and {f} beats a minute, what does a heart pump in mL/min? | At {f} beats a minute of {s} mL each, give the output in mL/min. | Each of {f} beats a minute moves {s} mL. Find the output in mL/min."),
        ("breathing", "biology", "f=8..30 v=300..700", "b = f * v", "mL/min",
         "Someone breathes {f} times a minute, {v} mL each. How many mL/min is that? | With {v} mL a breath and {f} breaths a minute, what air in mL/min is moved? | At {f} breaths a minute of {v} mL, give the air in mL/min. | Each of {f} breaths a minute takes {v} mL. Find the air in mL/min."),
        ("quadrats", "biology", "d=2..30 q=4..12 n=d*q", "d = n / q", "1/m^2",
         "{n} plants stand in {q} squares of 1 m^2. What is the density in 1/m^2? | In {q} squares of 1 m^2 each are {n} plants. Give their density in 1/m^2. | What density in 1/m^2 do {n} plants in {q} squares of 1 m^2 have? | A count gives {n} plants in {q} squares of 1 m^2. Find the density in 1/m^2."),
        ("recapture", "biology", "R=2..9 k=2..9 M=10..40 C=R*k", "N = M * C / R", "",
         "{M} {animal} were marked. Of {C} caught later {R} had marks. How many are there in all? | Of {C} {animal} in a second catch {R} bear marks; {M} had been marked. Estimate the number in all. | {M} {animal} got a mark; a later catch of {C} has {R} with it. Give the estimate of all. | After {M} {animal} were marked, {R} of {C} caught have marks. Find the estimated total."),
        ("doubling", "biology", "a=2..9 g=2..5", "N = a * 2^g", "",
         "{a} bacteria divide {g} times. How many are there then? | After {g} divisions, how many bacteria come from {a}? | From {a} bacteria that each divide {g} times, how many come? | {a} bacteria double {g} times. Find their number."),
        ("growth", "biology", "r=2..12 t=2..12 a=5..40 b=a+r*t", "r = (b - a) / t", "cm/d",
         "A shoot grows from {a} cm to {b} cm in {t} d. What is its growth in cm/d? | In {t} d a shoot goes from {a} cm to {b} cm. Give the growth in cm/d. | What growth in cm/d takes a shoot from {a} cm to {b} cm within {t} d? | A shoot of {a} cm has {b} cm after {t} d. Find the growth in cm/d."),
        ("net production", "biology", "n=5..60 r=5..40 g=n+r", "n = g - r", "kg",
         "A meadow builds {g} kg and breathes away {r} kg. What is its net production in kg? | Of {g} kg that plants build they use {r} kg. Give the net production in kg. | What is left in kg when plants build {g} kg and use {r} kg themselves? | A pond makes {g} kg and respires {r} kg. Find the net production in kg."),
        ("energy transfer", "biology", "e=2..30 E=500..500 u=e*5", "e = 100 * u / E", "%",
         "Of {E} kJ in plants {u} kJ reach the {animal}. What share in % is that? | {animal} keep {u} kJ of {E} kJ eaten. Give the share in %. | What percentage of {E} kJ is the {u} kJ that {animal} gain? Answer in %. | {animal} take {E} kJ and store {u} kJ. Find the share stored in %."),
        ("food energy", "biology", "a=2..20 b=2..20 c=2..9", "E = a * 17 + b * 17 + c * 37", "kJ",
         "Food has {a} g sugar, {b} g protein and {c} g fat. At 17, 17 and 37 kJ/g, how many kJ is that? | At 17 kJ/g for sugar and protein and 37 kJ/g for fat, give the kJ of {a} g, {b} g and {c} g. | What energy in kJ have {a} g sugar (17 kJ/g), {b} g protein (17 kJ/g) and {c} g fat (37 kJ/g)? | A meal of {a} g sugar, {b} g protein, {c} g fat gives 17, 17 and 37 kJ/g. Find its energy in kJ."),
        # earth science
        ("discharge", "earth science", "A=2..40 v=2..9", "Q = A * v", "m^3/s",
         "The river {place} has a section of {A} m^2 and flows at {v} m/s. What is its discharge in m^3/s? | At {v} m/s through {A} m^2, what does the {place} carry in m^3/s? | Through {A} m^2 the {place} flows at {v} m/s. Give the discharge in m^3/s. | The {place} runs at {v} m/s in a bed of {A} m^2. Find its discharge in m^3/s."),
        ("gradient", "earth science", "s=2..40 l=2..12 h=s*l", "s = h / l", "m/km",
         "The stream {place} falls {h} m over {l} km. What is its gradient in m/km? | Over {l} km the {place} drops by {h} m. Give the gradient in m/km. | What gradient in m/km has the {place}, which loses {h} m in {l} km? | The {place} descends {h} m along {l} km. Find the gradient in m/km."),
        ("plate", "earth science", "v=1..12 t=2..30 d=v*t", "v = d / t", "mm/yr",
         "A plate moved {d} mm in {t} yr. What is its speed in mm/yr? | In {t} yr the plate {place} went {d} mm. Give its speed in mm/yr. | How many mm/yr does a plate make that moved {d} mm within {t} yr? | Over {t} yr the {place} plate shifts {d} mm. Find its speed in mm/yr."),
        ("sediment", "earth science", "r=1..12 t=2..40", "h = r * t", "mm",
         "Mud settles at {r} mm/yr. How thick in mm is it after {t} yr? | After {t} yr at {r} mm/yr, what thickness in mm has the mud of lake {place}? | In lake {place} {r} mm/yr settle. Give the thickness in mm after {t} yr. | For {t} yr lake {place} gains {r} mm/yr of mud. Find the thickness in mm."),
        ("rain", "earth science", "r=2..40 A=5..90", "V = r * A", "L",
         "{r} mm of rain fall on {A} m^2. How many L is that? (1 mm on 1 m^2 is 1 L.) | On a roof of {A} m^2 fall {r} mm of rain. 1 mm on 1 m^2 is 1 L. Give the water in L. | 1 mm on 1 m^2 is 1 L: what water in L do {r} mm bring to {A} m^2? | A field of {A} m^2 gets {r} mm, with 1 L for 1 mm on 1 m^2. Find the water in L."),
        ("lapse", "earth science", "a=2..30 h=1..5 b=a-h*6", "b = a - 6 * h", "degC",
         "At the foot of {place} it has {a} degC. It gets 6 degC colder each km. What has it in degC {h} km up? | With 6 degC less each km, what is the temperature in degC {h} km above a place with {a} degC? | Air of {a} degC loses 6 degC each km. Give its temperature in degC after {h} km up. | From {a} degC the air cools by 6 degC each km. Find the temperature in degC {h} km higher."),
        ("quake", "earth science", "v=3..9 t=5..40", "d = v * t", "km",
         "A wave of a quake arrives after {t} s at {v} km/s. How far off in km was it? | At {v} km/s a wave from {place} takes {t} s. Give the distance in km. | What distance in km does a quake's wave cover in {t} s at {v} km/s? | A station feels the wave after {t} s, at {v} km/s. Find the distance in km."),
        ("half-life", "earth science", "k=2..6 h=2..12", "t = k * h", "kyr",
         "A rock has seen {k} half-lives of {h} kyr. How old is it in kyr? | With a half-life of {h} kyr, how old in kyr is a sample after {k} of them? | {k} half-lives of {h} kyr have passed. Give the age in kyr. | A layer at {place} is {k} half-lives old, of {h} kyr each. Find its age in kyr."),
        ("residence", "earth science", "T=2..40 q=2..12 V=T*q", "T = V / q", "d",
         "A lake of {V} m^3 gains {q} m^3/d. How long in d does its water stay? | Lake {place} holds {V} m^3 and loses {q} m^3/d. Give the residence time in d. | What residence time in d has water in {V} m^3 with {q} m^3/d flowing through? | Through lake {place} of {V} m^3 pass {q} m^3/d. Find the residence time in d."),
        ("geothermal", "earth science", "s=5..12 g=20..40 h=2..9", "T = s + g * h", "degC",
         "The ground at {place} has {s} degC and warms by {g} degC each km. What has it in degC {h} km down? | With {g} degC more each km below {s} degC, give the temperature in degC at {h} km. | What temperature in degC is {h} km down, from {s} degC with {g} degC each km? | A mine of {h} km starts at {s} degC and gains {g} degC each km. Find the temperature in degC at its end."),
        ("map", "earth science", "s=2..25 c=2..30", "d = s * c", "km",
         "On a map 1 cm is {s} km. How many km are {c} cm? | {c} cm on a map with {s} km to the cm: what distance in km? | A map shows {s} km by 1 cm. Give the distance in km of {c} cm. | With 1 cm for {s} km, a path to {place} has {c} cm. Find its length in km."),
    )
)  # fmt: skip


def make_examples(split: str, n: int, seed: int) -> list[Example]:
    """The first `n` problems of a split, no prompt twice."""
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
    """One problem with its steps and answer."""
    family = rng.choice(FAMILIES)
    wordings = family.said.split(" | ")
    which = {"train": rng.choice((0, 1)), "dev": 2, "test": 3}[split]
    values = draw(family, rng)
    things = {name: rng.choice(pool[split].split(",")) for name, pool in THINGS.items()}
    question = wordings[which].format(**things, **values)
    question = question[0].upper() + question[1:]
    lines = []
    for step in family.steps.split("; "):
        name, formula = step.split(" = ")
        filled = _fill(formula, values)
        values = {**values, name: _short(arithmetic(filled) or 0.0)}
        lines.append(
            f"{name} = {formula} = {filled} = {values[name]}"
            if formula != filled
            else f"{name} = {filled} = {values[name]}"
        )
    answer = f"Answer: {values[name]} {family.unit}".strip()
    extra = {"science": family.science, "family": family.name, "number": float(values[name]), "unit": family.unit}
    group = f"{family.name} {which}"
    return Example(
        f"science-{split}-{number}", f"{INSTRUCTION}\n\n{question}", "\n".join([*lines, answer]), group, extra
    )


def draw(family: Family, rng: random.Random) -> dict[str, str]:
    """The variables of a family as text, drawn or computed in order."""
    values: dict[str, str] = {}
    for part in family.draw.split():
        name, spec = part.split("=")
        if ".." in spec:
            low, high = map(int, spec.split(".."))
            drawn = rng.randint(low, high)
            values[name] = str(drawn if drawn <= MENTAL else round(drawn, -len(str(drawn)) + 1))
        else:
            values[name] = _short(arithmetic(_fill(spec, values)) or 0.0)
    return values


def _fill(formula: str, values: dict[str, str]) -> str:
    return re.sub(r"[A-Za-z]", lambda m: values[m[0]], formula)


def _short(value: float) -> str:
    return f"{round(value, 4):g}" if abs(value) < 1e5 else str(round(value))
