"""The program inside the sandbox, started as `python child.py REQUESTS RESULTS` with two pipes to the parent.

The first request is an order: the code, which files may be read, and the limits. The process locks itself down before
it runs any untrusted code. Then it runs the code and replies to each request (name, arguments) with what that function
returns; or, if the order names an entry, it runs tests, whose calls of `candidate` go to the parent, which asks another
child.

A reply is one line: a letter, and a value as `values.py` writes it. Untrusted code could forge replies, so the parent
accepts only plain values, and the expected values are never in this process.
"""

import os
import sys

import kernel_guard
import values

_MOST_TEXT = 500  # characters of a message
_UNSAFE_CALLS = frozenset(
    "os.system os.fork os.forkpty os.exec os.posix_spawn os.spawn subprocess.Popen socket.__new__ socket.getaddrinfo "
    "ctypes.dlopen os.kill os.killpg gc.get_objects gc.get_referrers".split()
)
_FILE_CHANGES = frozenset(
    "os.remove os.rename os.rmdir os.mkdir os.symlink os.link os.chmod os.chown os.truncate os.utime "
    "shutil.rmtree".split()
)


def _describe(error: BaseException, code: str) -> list:
    """Type, message, line in the untrusted code (0 if unknown) of an exception, and whether access was denied."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == code else line
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and isinstance(error.lineno, int):
        line = error.lineno
    try:
        text = str(error)[:_MOST_TEXT]
    except BaseException:  # an exception class of the untrusted code
        text = ""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    return [names[0], text, line, bool(isinstance(error, PermissionError))]


class _Wire:
    """The two pipes to the parent."""

    def __init__(self, requests: int, results: int):
        self.requests = open(requests, encoding="ascii", newline="\n")  # noqa: SIM115
        self.results = results
        self.unsafe: list = []

    def request(self):
        line = self.requests.readline()
        return values.decode(line) if line else None

    def reply(self, letter: str, value=None, most: int = 1 << 20) -> None:
        if self.unsafe:
            unsafe, self.unsafe = self.unsafe[:8], []
            self._send("u", unsafe, most)
        self._send(letter, value, most)

    def _send(self, letter: str, value, most: int) -> None:
        data = (letter + values.encode(value, most) + "\n").encode("ascii")
        while data:
            data = data[os.write(self.results, data) :]

    def watch(self, folder: str) -> None:
        """Note attempts to leave the sandbox, for the failure class `unsafe`. The kernel is what refuses them."""

        def outside(path) -> bool:
            if isinstance(path, int) or path is None:
                return False
            path = os.path.abspath(os.fsdecode(path))
            return path != "/dev/null" and not (path + os.sep).startswith(folder)

        def hook(event: str, args: tuple) -> None:
            try:
                unsafe = event in _UNSAFE_CALLS or (event in _FILE_CHANGES and outside(args[0]))
                if event == "open":
                    unsafe = bool(args[2] & (os.O_WRONLY | os.O_RDWR)) and outside(args[0])
                if unsafe and len(self.unsafe) < 8 and event not in self.unsafe:
                    self.unsafe.append(event)
            except BaseException:  # the hook must not change what the code does
                pass

        sys.addaudithook(hook)


def _run(code: str, name: str, known=()):
    """The module that the code makes, and the exception it raised or None."""
    module = type(sys)(name)
    module.__dict__.update(known)
    sys.modules[name] = module
    try:
        exec(compile(code, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return module, error
    return module, None


def _answer(wire: _Wire, order: dict) -> None:
    most = order["value_bytes"]
    module, problem = _run(order["code"], "answer")
    if problem is not None:
        wire.reply("s" if isinstance(problem, SyntaxError) else "e", _describe(problem, "<answer>"))
        return
    wire.reply("l")
    while (request := wire.request()) is not None:
        name, args, named = request
        before = values.encode(args, 1 << 26)
        try:
            value = getattr(module, name)(*args, **named)
        except BaseException as error:
            wire.reply("e", _describe(error, "<answer>"))
            continue
        try:
            if values.encode(args, 1 << 26) != before:
                wire.reply("m", args, most)
            wire.reply("v", value, most)
        except (values.NotPlain, RecursionError, RuntimeError, MemoryError) as error:
            wire.reply("n", str(error)[:_MOST_TEXT])


def _check(wire: _Wire, order: dict) -> None:
    import builtins

    def candidate(*args, **named):
        wire.reply("c", [list(args), named], order["value_bytes"])
        letter, value, changed = wire.request()
        for mine, theirs in zip(args, changed or args, strict=False):  # arguments that the candidate changed
            if type(mine) in (list, dict, set) and type(theirs) is type(mine):
                mine.clear()
                (mine.extend if type(mine) is list else mine.update)(theirs)
        if letter == "v":
            return value
        kind = getattr(builtins, value[0], RuntimeError)
        raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(value[1])

    module, problem = _run(order["code"], "tests", {order["name"]: candidate, "candidate": candidate})
    try:
        if problem is not None:
            raise problem
        if order["entry"]:
            getattr(module, order["entry"])(candidate)
    except values.NotPlain as error:
        wire.reply("n", str(error)[:_MOST_TEXT])
    except BaseException as error:
        wire.reply("e", _describe(error, "<tests>"))
    else:
        wire.reply("p")


def main() -> None:
    wire = _Wire(int(sys.argv[1]), int(sys.argv[2]))
    order = wire.request()
    sys.path[:1] = []  # untrusted code cannot import these modules
    folder = os.getcwd()
    kernel_guard.limit(order["memory"], order["cpu"], order["file_bytes"], strong=order["strong"])
    if order["strong"]:
        kernel_guard.lock(order["readable"], [folder], order["paths"])
    sys.path += order["paths"]
    wire.watch(folder + os.sep)
    wire.reply("r")
    (_check if "entry" in order else _answer)(wire, order)
    os._exit(0)


if __name__ == "__main__":
    main()
