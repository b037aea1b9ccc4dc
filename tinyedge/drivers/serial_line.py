"""A serial port on Trio: opened raw, locked against other programs, with the silences that Modbus RTU wants."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from contextlib import suppress

import trio
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Offline

_TIOCSRS485 = 0x542F
_RS485_ENABLED, _RS485_RTS_ON_SEND = 1, 2
_READ_BYTES = 512
_DEVICES = "/sys/dev/char"  # each with the subsystem that it belongs to, but pseudo-terminals
_PTYS = range(136, 144)
_SIZES = {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}
PARITIES = {"none": 0, "even": termios.PARENB, "odd": termios.PARENB | termios.PARODD}


class Serial(Struct, frozen=True):
    """How a port is set. `rs485`: the kernel turns the line round for sending."""

    path: str
    baud: int = 9600
    data_bits: int = 8
    parity: str = "none"
    stop_bits: int = 1
    rs485: bool = False

    @property
    def char_s(self) -> float:
        """How long one character takes."""
        bits = 1 + self.data_bits + (self.parity != "none") + self.stop_bits
        return bits / self.baud

    @property
    def silence_s(self) -> float:
        """Between two frames: 3.5 characters, and 1.75 ms where those would be too short for clocks to tell."""
        return max(3.5 * self.char_s, 0.00175)

    def __str__(self) -> str:
        return self.path


def baud_number(baud: int) -> int:
    """What termios calls this rate. Raises BadInput for one that it does not have."""
    number = getattr(termios, f"B{baud}", None)
    if baud <= 0 or not isinstance(number, int):
        raise BadInput("baudRate", baud, "a rate that serial ports have, such as 9600, 19200 or 115200")
    return number


def is_port(path: str) -> bool:
    """Asked before it is opened: to open something else, such as a watchdog, may do more than that. Raises OSError."""
    status = os.stat(path)
    if not stat.S_ISCHR(status.st_mode):
        return False
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if major in _PTYS:
        return True
    known = f"{_DEVICES}/{major}:{minor}/subsystem"
    return os.path.basename(os.path.realpath(known)) == "tty" if os.path.isdir(_DEVICES) else True


class SerialPort:
    """An open port. One task at a time uses it."""

    def __init__(self, settings: Serial) -> None:
        """Raises Offline when it can't be opened."""
        self.settings = settings
        try:
            if not is_port(settings.path):
                remedy = "take one of ls -l /dev/serial/by-id"
                raise Offline(f"{settings.path} can't be used", "it is no serial port", remedy)
            self._fd = os.open(settings.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise _away(settings, error) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._set_up()
        except BlockingIOError:
            os.close(self._fd)
            raise Offline(f"{settings.path} is in use", "another program has it locked", "stop that one") from None
        except (OSError, termios.error) as error:
            os.close(self._fd)
            raise _away(settings, error) from None
        self._quiet_at = trio.current_time() + settings.silence_s

    def _set_up(self) -> None:
        settings = self.settings
        speed = baud_number(settings.baud)
        flags = termios.CREAD | termios.CLOCAL | _SIZES[settings.data_bits] | PARITIES[settings.parity]
        flags |= termios.CSTOPB if settings.stop_bits == 2 else 0
        check = termios.INPCK if settings.parity != "none" else 0
        control = termios.tcgetattr(self._fd)[6]
        control[termios.VMIN], control[termios.VTIME] = 1, 0  # nothing there is no end
        termios.tcsetattr(self._fd, termios.TCSANOW, [check, 0, flags, 0, speed, speed, control])
        if settings.rs485:
            mode = struct.pack("8I", _RS485_ENABLED | _RS485_RTS_ON_SEND, *[0] * 7)
            fcntl.ioctl(self._fd, _TIOCSRS485, mode)

    async def send(self, data: bytes) -> None:
        """Wait for silence, drop what has come unasked, and send. Raises Offline."""
        await trio.sleep_until(self._quiet_at)
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
            while data:
                with suppress(BlockingIOError):
                    data = data[os.write(self._fd, data) :]
                    continue
                await trio.lowlevel.wait_writable(self._fd)
        except (OSError, termios.error) as error:
            raise _away(self.settings, error) from None
        finally:
            self._heard()

    async def receive(self) -> bytes:
        """What comes next. Raises Offline when the port is gone."""
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            except OSError as error:
                raise _away(self.settings, error) from None
            if not data:
                raise _away(self.settings, OSError(errno.EIO, "the port was hung up"))
            self._heard()
            return data

    def _heard(self) -> None:
        self._quiet_at = trio.current_time() + self.settings.silence_s

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._fd)
        os.close(self._fd)


def _away(settings: Serial, error: Exception) -> Offline:
    why = getattr(error, "strerror", None) or str(error.args[-1] if error.args else error)
    remedy = "see whether it is plugged in, and ls -l /dev/serial/by-id" if "No such" in why else ""
    return Offline(f"{settings.path} can't be used", why, remedy)
