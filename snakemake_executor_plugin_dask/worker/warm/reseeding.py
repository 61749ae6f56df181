"""Random numbers in children of the warm process: fresh where a cold job's would be, the same where they would be.

A fork hands on the state of every generator. That is right for one that the workflow gave a seed, and wrong for one
whose seed came from the kernel (`random.Random()`, `numpy.random.default_rng()`, `seed(None)`), which a cold job would
make anew. So the kernel's random numbers are noted while the workflow is read, and in each child the generators that
started from one of them are seeded again. Patches `random` and `os.urandom` while it watches.
"""

import contextlib
import gc
import os
import random
import sys
import time
import weakref
from typing import Any, Self

#: How far a Mersenne Twister is followed from a seed, in blocks of 624 numbers.
_BLOCKS = 200
_BLOCKS_FROM_TIME = 8  # any second of the reading may be the seed
_SEED_BYTES = 16  # of what NumPy takes from the kernel
_RENEWABLE = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class Randomness:
    """Watches while the workflow is read, then knows what a child must seed again."""

    def __init__(self) -> None:
        self._drawn: set[int | bytes] = set()  # random numbers of the kernel
        self._seeds: list[int] = []  # those that may be NumPy's
        self._fresh: dict[int, weakref.ref[random.Random]] = {}  # Python's generators without a seed, by id
        self._seeded = False  # the functions of the module `random`
        self._fresh_states: set[int] = set()
        self._state: Any = None
        self._numpy: list[Any] = []  # NumPy's generators and seeds that no child may share
        self._began = time.time()

    def __enter__(self) -> Self:
        self._patches = contextlib.ExitStack()
        own: random.Random = random._inst
        seed, getstate, setstate = random.Random.seed, random.Random.getstate, random.Random.setstate

        def note(generator: random.Random, *, fresh: bool) -> None:
            if generator is own:
                self._seeded = not fresh
            elif fresh:
                self._fresh[id(generator)] = weakref.ref(generator)
            else:
                self._fresh.pop(id(generator), None)

        def noted_seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
            seed(generator, a, version)
            note(generator, fresh=a is None or self._is_chance(a))

        def noted_getstate(generator: random.Random) -> Any:
            state = getstate(generator)
            if (not self._seeded) if generator is own else self._is_fresh(generator):
                self._fresh_states.add(hash(state))
            return state

        def noted_setstate(generator: random.Random, state: Any) -> None:
            setstate(generator, state)
            with contextlib.suppress(TypeError):
                note(generator, fresh=hash(state) in self._fresh_states)

        for name, method in (("seed", noted_seed), ("getstate", noted_getstate), ("setstate", noted_setstate)):
            self._instead(random.Random, name, method)
            self._instead(random, name, method.__get__(own))
        self._instead(os, "urandom", self._noting(os.urandom, []))
        self._instead(random, "_urandom", self._noting(random._urandom, self._seeds))  # type: ignore[attr-defined]
        numpy = sys.modules.get("numpy.random")
        first = numpy.mtrand._rand._bit_generator.seed_seq if numpy is not None else None
        if first is not None:  # it was there before anything could be noted
            self._seeds.append(first.entropy)
            self._drawn.add(first.entropy)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()
        self._state = random.getstate() if self._seeded else None

    def _instead(self, owner: Any, name: str, value: Any) -> None:
        self._patches.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def _noting(self, urandom: Any, seeds: list[int]) -> Any:
        def noted(size: int) -> bytes:
            data: bytes = urandom(size)
            number = int.from_bytes(data)
            self._drawn.update((data, number, int.from_bytes(data, "little")))
            if size == _SEED_BYTES:
                seeds.append(number)
            return data

        return noted

    def _is_fresh(self, generator: random.Random) -> bool:
        return (found := self._fresh.get(id(generator))) is not None and found() is generator

    def _is_chance(self, seed: Any) -> bool:
        """Whether a seed that was given is the kernel's, or the time."""
        if isinstance(seed, bytearray):
            seed = bytes(seed)
        if not isinstance(seed, int | float | bytes):
            return False
        if isinstance(seed, int | float):
            now = time.time()
            if any(int(self._began) * unit <= seed <= (now + 1) * unit for unit in (1, 10**3, 10**6, 10**9)):
                return True
        return seed in self._drawn

    def look(self) -> str:
        """After the reading: find NumPy's generators. Why jobs must read the workflow themselves; empty if not."""
        numpy = sys.modules.get("numpy")
        if numpy is None or "numpy.random" not in sys.modules:
            return ""
        gc.collect()
        kinds = (numpy.random.BitGenerator, numpy.random.RandomState, numpy.random.SeedSequence)
        found = [item for item in gc.get_objects() if issubclass(type(item), kinds)]  # proxies are left alone
        # They hold a number more than their bit generator does.
        states = {id(item._bit_generator): item for item in found if isinstance(item, numpy.random.RandomState)}
        twisters = [item for item in found if type(item).__name__ == "MT19937"]
        fresh = self._fresh_twisters(numpy, twisters)
        for item in found:
            if isinstance(item, numpy.random.SeedSequence):
                if self._is_fresh_seed(item):
                    self._numpy.append(item)
                continue
            kind, seed = type(item).__name__, getattr(item, "seed_seq", None)  # none of a `RandomState`
            if id(item) in fresh or (kind != "MT19937" and self._is_fresh_seed(seed)):
                if kind not in _RENEWABLE:
                    return f"it holds a random generator ({kind}) that cannot be seeded again"
                self._numpy.append(states.get(id(item), item))
        return ""

    def _is_fresh_seed(self, seed: Any) -> bool:
        entropy = getattr(seed, "entropy", None)
        return isinstance(entropy, int) and self._is_chance(entropy)

    def _fresh_twisters(self, numpy: Any, twisters: list[Any]) -> set[int]:
        """Those, by id, whose state follows from a seed of the kernel's, or the time.

        A Mersenne Twister may have got another seed since it was made, so that only its state tells.
        """
        keys: dict[bytes, list[int]] = {}
        for item in twisters:
            if (seed := item.seed_seq) is None or self._is_fresh_seed(seed):
                keys.setdefault(item.state["state"]["key"].tobytes(), []).append(id(item))
        if not keys:
            return set()
        seeds = [numpy.random.SeedSequence(number) for number in self._seeds]
        seeds += [item.seed_seq for item in twisters if item.seed_seq is not None]  # those made by `spawn`
        possible = [(numpy.random.MT19937(seed), _BLOCKS) for seed in seeds if self._is_fresh_seed(seed)]
        seconds = range(int(self._began), int(time.time()) + 1)
        possible += [(numpy.random.RandomState(second)._bit_generator, _BLOCKS_FROM_TIME) for second in seconds]
        found: set[int] = set()
        for generator, blocks in possible:
            for _ in range(blocks):
                found.update(keys.get(generator.state["state"]["key"].tobytes(), ()))
                generator.random_raw(624, output=False)
        return found

    # In a child

    def renew(self) -> None:
        """Seed again what must not be shared. Python's own functions are seeded anew by each fork."""
        if self._state is not None:
            random.setstate(self._state)
        for reference in self._fresh.values():
            if (generator := reference()) is not None:
                random.Random.seed(generator)
        for item in self._numpy:
            item.__init__()
