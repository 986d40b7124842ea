"""How much memory and time the reader `mimic` takes on a notes table of two million rows.

The table is made up (`tests/clinical/made_up_mimic.py` says of what): notes of one and a half
thousand characters, every row a discharge summary, none near the others of its admission. The
reader streams it to the Arrow file that `prepare` tokenises; a process of its own, so that the
peak is the reader's. Writes results/mimic_memory.json and .md beside this file.

    python benchmarks/mimic_memory.py --notes 2000000 --characters 1500 --folder SCRATCH
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import described_machine, load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LIMIT_MIB = 4096  # what two million notes must fit in
WORDS = ["patient", "seen", "with", "pain,", "no", "fever;", "given", "250mg", "at", '"home"']
READ = """
import json, resource, sys, time
from pathlib import Path
from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.gather import gather

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

folder, imported, started = Path(sys.argv[1]), peak(), time.perf_counter()
corpus = open_corpus(DataConfig(reader="mimic", path=str(folder)))
labels = sum(1 for _ in corpus.labels())
indexed, indexed_s = peak(), time.perf_counter() - started
gathered = gather(corpus, folder / "gathered.arrow")
print(json.dumps({
    "documents": len(gathered.splits), "labels": labels, "mib_imported": round(imported),
    "mib_indexed": round(indexed), "mib_peak": round(peak()), "seconds_index": round(indexed_s, 1),
    "seconds": round(time.perf_counter() - started, 1),
    "seconds_cpu": round(time.process_time(), 1),
}))
"""


def write_tables(folder: Path, notes: int, characters: int) -> None:
    """Write a table of `notes` rows over two thirds as many admissions, in no order."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    # Some hundred texts, so that writing does not take longer than reading; each row is its own.
    count = characters // 6
    texts = [" ".join(random.choice(WORDS, count)).replace('"', '""') for _ in range(100)]
    admissions = max(1, notes * 2 // 3)
    order = random.permutation(notes)
    with (folder / "NOTEEVENTS.csv").open("w") as stream:
        stream.write(
            '"ROW_ID","SUBJECT_ID","HADM_ID","CHARTDATE","CATEGORY","DESCRIPTION","TEXT"\n'
        )
        for row in order.tolist():
            one = row % admissions
            kind = "Report" if row < admissions else "Addendum"
            stream.write(
                f'{row},{one // 2},{one},2118-06-02,"Discharge summary","{kind}",'
                f'"Note {row}\n{texts[row % 100]}\n"\n'
            )
    header = '"ROW_ID","SUBJECT_ID","HADM_ID","SEQ_NUM","ICD9_CODE"\n'
    for name, each, codes in (("DIAGNOSES_ICD", 4, 7000), ("PROCEDURES_ICD", 1, 2000)):
        chosen = random.zipf(1.2, admissions * each) % codes
        with (folder / f"{name}.csv").open("w") as stream:
            stream.write(header)
            stream.writelines(
                f'{place},1,{place // each},1,"{code:04d}"\n'
                for place, code in enumerate(chosen.tolist())
            )


def markdown(found: dict[str, Any]) -> str:
    """The result as a table, with how it was got."""
    rows = {
        "notes (rows of the table)": f"{found['notes']:,}",
        "table of notes": f"{found['table_mib']:,} MiB",
        "documents (admissions), labels": f"{found['documents']:,}, {found['labels']:,}",
        "memory after imports": f"{found['mib_imported']:,} MiB",
        "peak memory, notes and codes indexed": f"{found['mib_indexed']:,} MiB",
        "peak memory, Arrow file written": f"**{found['mib_peak']:,} MiB** of {LIMIT_MIB:,}",
        "seconds, of them processor": f"{found['seconds']:.0f}, {found['seconds_cpu']:.0f}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# Memory of the reader `mimic` on a made-up table\n\n"
        f"`{found['command']}` on {found['machine']}; random seed 0, one run. Peaks are the "
        f"process's largest resident size.\n\n| | |\n|---|---|\n{table}\n"
    )


def main() -> None:
    """Write the tables, read them in a process of its own, keep and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=int, default=2_000_000)
    parser.add_argument("--characters", type=int, default=1500)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.perf_counter()
    write_tables(arguments.folder, arguments.notes, arguments.characters)
    size = (arguments.folder / "NOTEEVENTS.csv").stat().st_size
    print(f"wrote {size / 2**30:.2f} GiB in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(arguments.folder)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    found = {
        "command": f"python benchmarks/mimic_memory.py --notes {arguments.notes} --characters "
        f"{arguments.characters} --folder SCRATCH",
        "machine": f"{described_machine()}, {load()}",
        "notes": arguments.notes,
        "table_mib": size >> 20,
        **json.loads(done.stdout),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "mimic_memory.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "mimic_memory.md").write_text(markdown(found))
    print(markdown(found))
    if found["mib_peak"] > LIMIT_MIB:
        raise SystemExit(f"the peak passes {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
