"""Run one fuzz target for long: `python -m tests.fuzz.run TARGET [INPUTS]`, with atheris where it is installed.

With atheris the arguments behind TARGET are libFuzzer's (`-max_total_time=600`, a corpus folder). Without it INPUTS mutated
seeds are tried (100,000 by default), and the input that broke a promise is printed in hex: add it to the unit tests.
"""

from __future__ import annotations

import importlib.util
import random
import sys

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in TARGETS:
        print(f"usage: python -m tests.fuzz.run {'|'.join(TARGETS)} [INPUTS]", file=sys.stderr)
        return 2
    target = TARGETS[arguments[0]]
    if importlib.util.find_spec("atheris"):
        return _run_atheris(target, arguments)
    return _run_plain(target, int(arguments[1]) if len(arguments) > 1 else 100_000)


def _run_atheris(target: Target, arguments: list[str]) -> int:
    import atheris

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments[1:]], target.fuzz_one)
    atheris.Fuzz()
    return 0


def _run_plain(target: Target, inputs: int) -> int:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {inputs:,} inputs")
    rng = random.Random(seed)
    for _ in range(inputs):
        data = mutate(rng.choice(target.seeds), rng)
        try:
            target.fuzz_one(data)
        except Exception:
            print(f"broken by {data.hex()}")
            raise
    print("every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
