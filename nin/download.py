"""Files from the internet: each address has a deadline, a least speed and a largest size; then the next is asked."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence

from nin.checks import one_line
from nin.errors import DataError

SILENCE = 20.0  # seconds without a byte after which an address is given up
TRIAL = 15.0  # seconds in which an address must show its speed, again and again
SLOW = 300e3  # bytes per second; slower addresses are given up for others
SLOWEST = 10e3  # bytes per second; slower addresses are given up for good
DEADLINE = 6 * 3600.0  # seconds after which an address is given up in any case
MAX_DOWNLOAD_BYTES = 2e9  # a longer answer is none of our files; the longest, of SVHN, has 1.3e9


class SlowError(OSError):
    """An address that works, but slowly.

    Attributes:
        speed: in bytes per second.
    """

    def __init__(self, speed: float) -> None:
        super().__init__(f"slow, {speed / 1e3:.0f} kB/s")
        self.speed = speed


def download(urls: Sequence[str], expected: str, digest: Callable[[bytes], str]) -> bytes:
    """Returns the bytes with the checksum `expected` from the first of some addresses that has them.

    An address that is broken, silent, slow or has other bytes is given up for the next one, and this is printed. If no
    other is left, the slow ones get a second chance, the fastest first.

    Args:
        urls: the addresses.
        expected: the checksum, or its beginning.
        digest: computes the checksum of bytes; its name is the checksum's, md5 or sha256.

    Raises:
        DataError: no address has them; the message lists the reasons.
    """
    failures: dict[str, str] = {}
    slow: dict[str, float] = {}
    for patient in (False, True):
        for url in sorted(slow, key=lambda url: -slow[url]) if patient else urls:
            try:
                answer = read_address(url, patient=patient)
                if not (actual := digest(answer)).startswith(expected):
                    raise OSError(f"it has {digest.__name__} {actual}, expected {expected}")
                return answer
            except SlowError as error:
                slow[url], failures[url] = error.speed, str(error)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures[url] = one_line(error) or type(error).__name__
            print(f"gave up {one_line(url)}: {failures[url]}")
    reasons = "; ".join(f"{one_line(url)}: {reason}" for url, reason in failures.items())
    raise DataError(f"no address has it ({reasons or 'data.urls is empty'})")


def read_address(url: str, *, patient: bool = False) -> bytes:
    """Returns the answer of an address, with a progress bar.

    Raises:
        SlowError: it is slow and we are not `patient`.
        OSError, ValueError, http.client.HTTPException: it is broken, silent, all too slow, or its answer too long.
    """
    from tqdm import tqdm

    answer, start = _Answer(url), time.monotonic()
    answer.start()
    slowest, mark, marked = SLOWEST if patient else SLOW, start, 0
    with tqdm(desc=one_line(url), unit="B", unit_scale=True) as bar:
        try:
            while True:
                ended = answer.ended.wait(0.1)
                now, received = time.monotonic(), len(answer.content)
                bar.total = answer.total
                bar.update(received - bar.n)
                if max(received, answer.total or 0) > MAX_DOWNLOAD_BYTES:
                    raise OSError(f"the answer is longer than {MAX_DOWNLOAD_BYTES:.0e} bytes")
                if ended and answer.error:
                    raise answer.error
                if now - mark > TRIAL:
                    if received - marked < slowest * (now - mark):
                        error = SlowError((received - marked) / (now - mark))
                        raise OSError(str(error)) if patient else error
                    mark, marked = now, received
                if ended:
                    return bytes(answer.content)
                if now - start > DEADLINE:
                    raise OSError(f"not finished after {DEADLINE:.0f} s")
        finally:
            answer.abandoned = True


class _Answer(threading.Thread):
    """Reads an address in a thread of its own: no name server and no drip of header bytes can hold the caller.

    Attributes:
        content: the bytes so far.
        total: how many there will be, where the server says it.
        ended: set when the answer has ended or failed.
        error: why it failed.
        abandoned: set by the caller; the thread then ends with the next byte.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)  # a thread that is held ends with the process
        self.url = url
        self.content = bytearray()
        self.total: int | None = None
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.abandoned = False

    def read(self) -> None:
        """Reads the answer to its end."""
        with urllib.request.urlopen(self.url, timeout=SILENCE) as answer:
            self.total = int(answer.headers.get("Content-Length") or 0) or None
            while not self.abandoned and len(self.content) <= MAX_DOWNLOAD_BYTES:
                chunk = answer.read1(1 << 20)
                if not chunk:
                    break
                self.content += chunk

    def run(self) -> None:
        try:
            self.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.error = error
        except Exception as error:  # a server's answer raises anything
            self.error = OSError(f"{type(error).__name__}: {one_line(error)}")
        finally:
            self.ended.set()
