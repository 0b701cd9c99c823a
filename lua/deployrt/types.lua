---@meta deployrt.core
-- luacheck: ignore
-- types.lua -- What the C core exports, for editors and for readers. Never loaded: spec/types_spec.lua compares it
-- with what src/ really exports. Times are in seconds. A function marked @async waits: it may only be called inside
-- a task (core.run, core.spawn). It raises in a bare coroutine and below table.sort, string.gsub or a metamethod.
-- Misuse (a wrong type, a closed link) raises a string; the world failing is returned as `nil, deployrt.Error`.

--- What every failure looks like, returned by C and raised by Lua. Codes of the core: "canceled", "timeout", "missing", "exists",
--- "full", "system", "lost", "closed", "output", "spawn", "refused", "unresolved", "http", "yaml", "unreachable", "denied", "host_key",
--- "unsupported", "terminal". Functions of the host library (src/host.sh) have their own: "busy", "stranger", "lock", "checksum", ...
---@class deployrt.Error
---@field code string      for programs
---@field message string   for people: what, where, why
---@field host? string     name of the host that it concerns
---@field detail? string   output that explains it

---@class deployrt.core
---@field fs deployrt.core.fs
---@field yaml deployrt.core.yaml
---@field http deployrt.core.http
local core = {}

---@class deployrt.core.fs
core.fs = {}

---@class deployrt.core.yaml
---@field null userdata  what null and an empty value are in YAML: true in conditions, so compare with it
core.yaml = {}

---@class deployrt.core.http
core.http = {}

--- Runs a function as the outermost task, and the loop until it and all tasks that it spawned have ended.
---@param body fun(...): ...
---@param ... any  arguments of the function
---@return boolean ok        false: the function raised
---@return any ...           what it returned or raised; what was raised is what the function of core.set_traceback makes of it
function core.run(body, ...) end

--- Starts a task beside the running one, which ends only after all its children have. When a task raises, its children are canceled.
---@param body fun(...): ...
---@param ... any  arguments of the function
---@return deployrt.Task
function core.spawn(body, ...) end

--- A table of the running task's own. Reading falls through to that of the task that spawned it; writing does not.
---@return table? locals  nil outside a task
function core.locals() end

--- Limits what the running task, and every task that it spawns from now on, may use between two waits: instructions (about; allocation and
--- charge() count too), `seconds` of processor time, bytes of `memory` above what was in use, bytes of one `text`. Past it none of them runs on,
--- whatever they catch, and those above wait no longer: the error has the code "limit". `strings` is where methods of strings are found meanwhile. What is absent is not limited.
---@param limits {instructions?: number, seconds?: number, memory?: integer, text?: integer, strings?: table}
function core.confine(limits) end

--- Calls a function that must not wait, held to limits of its own, as confine() has them.
---@param limits {instructions?: number, seconds?: number, memory?: integer, text?: integer, strings?: table}
---@param fn fun(...): ...
---@param ... any
---@return boolean ok
---@return any ...  what it returned; else what it raised, or {code = "limit", message}
function core.confined(limits, fn, ...) end

--- Whether the runtime itself is at work in the running task: what limits the task rests meanwhile, and tasks that are
--- spawned have none. What was used before is not forgotten, unless the task waits.
---@param on boolean
---@return boolean before
function core.exempt(on) end

--- Counts work that C does for a confined task, and raises past its limit. Outside one it does nothing.
---@param steps number       worth so many instructions, at least 0
---@param thread? thread     a coroutine of the task that is about to be resumed: it is counted too
function core.charge(steps, thread) end

--- Sets the handler that turns a raised string into a message with a trace. Error tables travel as they are.
---@param handler fun(message: string): any
function core.set_traceback(handler) end

--- How many tasks have not ended; specs hold it to 0 after each test.
---@return integer
function core.live_tasks() end

--- Waits.
---@async
---@param seconds number  not negative
---@return true? ok
---@return deployrt.Error? err  "canceled"
function core.sleep(seconds) end

--- A condition that tasks wait for. It stays set until it is cleared.
---@return deployrt.Event
function core.event() end

--- Takes signals of the operating system over until the object is closed; they are queued, up to 16.
---@param ... "INT"|"TERM"|"HUP"|"WINCH"  one to four
---@return deployrt.Signals
function core.signals(...) end

--- Monotonic seconds, for measuring.
---@return number
function core.now() end

--- Seconds since the epoch.
---@return number
function core.time() end

--- Virtual time, for a simulator: core.now() begins at 0, and the time moves on to the next moment that a task waits for as soon as all tasks
--- wait; core.time() begins at `wall`. While it is on, it sets the time of day anew. nil ends it. Nothing real is looked at while a task so waits.
---@param wall number?  seconds since the epoch
--- Raises when tasks still wait for a moment that would never come.
function core.virtual_time(wall) end

--- Size of a terminal; nothing when the descriptor is none.
---@param fd integer  1: standard output
---@return integer? columns
---@return integer? rows
function core.terminal(fd) end

--- Who runs this process, where. `home` is $HOME before that of the user database.
---@return {user: string, home: string, host: string, pid: integer}
function core.whoami() end

--- Asks on the terminal, without showing what is typed. Blocks everything: for the time before a run.
---@param prompt string
---@return string? secret
---@return deployrt.Error? err  "terminal"
function core.ask_secret(prompt) end

--- Whether a terminal shows what is typed; nothing happens when the descriptor is none.
---@param fd integer
---@param on boolean
function core.echo(fd, on) end

--- Lines of text from a descriptor: a terminal, a pipe or a file.
---@param fd integer  0: standard input
---@return deployrt.Lines
function core.lines(fd) end

--- Lines that a person types on the terminal, edited with GNU readline; nil without a terminal, or where it is not installed.
---@return deployrt.Editor?
function core.editor() end

--- 64 hexadecimal digits.
---@param text string
---@return string
function core.sha256(text) end

--- The words as shell text, for messages that show a command. Raises when a word holds a NUL.
---@param words string[]
---@return string
function core.quote(words) end

--- How many SSH links may be logging in at once; the others queue. 64 unless set.
---@param links integer
function core.ssh_concurrency(links) end

--- What core.connect takes. "local": shells of this machine. "ssh": libssh2. "openssh": the ssh command.
---@class deployrt.ConnectOptions
---@field transport? "local"|"ssh"|"openssh"  default "local"
---@field name? string           of the host, in errors; default "local"
---@field root? string           the application's directory there, relative to HOME unless it begins with / or ~/
---@field command? string[]      openssh: `{"ssh", options..., destination}`
---@field address? string        ssh: required
---@field port? integer          ssh: default 22
---@field user? string           ssh: required
---@field known_as? string       ssh: its whole name in known_hosts; default the address, as "[address]:port" unless the port is 22
---@field known_hosts? string[]  ssh: files
---@field accept_new? boolean    ssh: remember the key of a host that is not known; default false
---@field identities? string[]   ssh: files of private keys, tried in order
---@field passphrases? string[]  ssh: of the private keys, in the same order; "": none
---@field agent? boolean         ssh: ask the agent first; default true
---@field agent_keys? string[]   ssh: only these keys of it, in base64; default: all
---@field timeout? number        ssh: seconds until it is logged in; default 10
---@field keepalive? number      ssh: seconds between signs of life; lost after three of them; default 5
---@field fd? integer            ssh: a connected socket (link:forward of a jump host), which the link takes over

--- Opens a link to a host. A local or openssh link opens without looking; its first operation tells.
---@async
---@param options deployrt.ConnectOptions
---@return deployrt.Link? link
---@return deployrt.Error? err  "unreachable", "denied", "host_key", "unsupported" (the ssh command may do it), "lost", "canceled"
function core.connect(options) end

--- One end of core.pipe: a file of this machine, or a command on a host.
---@class deployrt.PipeSide
---@field file? string
---@field link? deployrt.Link
---@field command? string[]
---@field library? boolean  the command is a function of src/host.sh

---@class deployrt.PipeResult
---@field bytes integer   that went through
---@field sha256? string  of them, unless `hash = false`
---@field from {status: integer, signal?: integer, output: string}  output: at most 64 KiB of its standard error
---@field to {status: integer, signal?: integer, output: string}    output: of both its outputs

--- Streams bytes from one side to the other, holding the source back when the sink is slow. A command that fails
--- is a result with its status, not an error; a file is synced before the end. `timeout`: of the whole transfer.
---
---     core.pipe { from = { file = "app.tar" }, to = { link = link, command = { "tar", "-xf", "-" } }, timeout = 60 }
---@async
---@param options {from: deployrt.PipeSide, to: deployrt.PipeSide, timeout?: number, hash?: boolean}
---@return deployrt.PipeResult? result
---@return deployrt.Error? err  "missing", "system", "lost", "timeout", "canceled"
function core.pipe(options) end

--- Makes one directory. An existing one is fine.
---@param path string
---@param mode? integer  permission bits, less the umask; default 0700
---@return true? ok
---@return deployrt.Error? err  "missing" (its parent), "exists" (and is no directory), "full", "system"
function core.fs.mkdir(path, mode) end

--- `mode` holds the permission bits, `mtime` seconds since the epoch.
---@param path string
---@return {type: "file"|"directory"|"other", size: integer, mode: integer, mtime: integer}? facts
---@return deployrt.Error? err  "missing", "system"
function core.fs.stat(path) end

--- Names in a directory, sorted, without "." and "..".
---@param path string
---@return string[]? names
---@return deployrt.Error? err  "missing", "system"
function core.fs.list(path) end

--- Paths that a pattern of the shell stands for (glob(7)), sorted. What cannot be read has none.
---@param pattern string
---@return string[] paths
function core.fs.glob(pattern) end

--- Writes a whole file: aside, synced, then renamed: it is the old one or the new one at any instant. A device stays what it is.
---@param path string
---@param text string
---@param mode? integer  permission bits; default 0600
---@return true? ok
---@return deployrt.Error? err  "missing", "exists" (and is no file), "full", "system"
function core.fs.write(path, text, mode) end

--- Removes a file or an empty directory. A missing one is fine.
---@param path string
---@return true? ok
---@return deployrt.Error? err  "system" (also a directory that is not empty)
function core.fs.remove(path) end

--- The absolute path without symbolic links.
---@param path string
---@return string? path
---@return deployrt.Error? err  "missing", "system"
function core.fs.realpath(path) end

--- Opens a file for appending only; makes it, mode 0600, when there is none.
---@param path string
---@return deployrt.LogFile? file
---@return deployrt.Error? err  "missing", "system"
function core.fs.append(path) end

---@class deployrt.YamlMark
---@field line integer
---@field column integer
---@field source? string  the value as written, when it is no text
---@field from? integer    of a scalar, the first of its characters in the text, with tag and anchor, counted from 1
---@field to? integer      the last one; where nothing is written, it is before the first
---@field anchor? string   of a scalar that has one

--- Where things stand in the text, counted from 1: `marks[t][key]` of each key of each table `t` that was read.
---@alias deployrt.YamlMarks table<table, table<any, deployrt.YamlMark>>

--- Reads one YAML 1.2 document. Repeated keys, a second document and text beyond the limit are errors: "name:line:column: ...".
---@param text string
---@param name string  of the file, for messages
---@return any value   core.yaml.null for null
---@return deployrt.YamlMarks|deployrt.Error marks_or_err  "yaml"
function core.yaml.parse(text, name) end

---@class deployrt.HttpOptions
---@field url string
---@field method? string            default "GET", or "POST" with a body
---@field headers? table<string,string>|string[]  names to values, or lines "Name: value"
---@field body? string
---@field timeout? number           seconds, of the whole request; default 10
---@field connect_timeout? number   seconds, of looking up and connecting; default the timeout
---@field max_body? integer         bytes; default 1 MiB
---@field follow? boolean           redirects, up to 10; default false
---@field unix_socket? string       path of the socket to connect to
---@field address? string           "host:port" to connect to in place of the URL's; names and certificates stay
---@field verify? boolean           certificates; default true
---@field proxy? string             none unless given; the environment is not asked
---@field no_reuse? boolean         a connection of its own; default false
---@field fd? integer               a connected socket (link:forward), which the request takes over

---@class deployrt.HttpResponse
---@field status integer
---@field body string
---@field headers table<string,string>  names in lower case; a repeated header is joined by ", "
---@field seconds number                that it took

--- An HTTP request. Any status is a response. Errors show the URL without user, query and fragment.
---@async
---@param options deployrt.HttpOptions  an unknown key raises
---@return deployrt.HttpResponse? response
---@return deployrt.Error? err  "timeout", "refused", "unresolved", "http", "canceled"
function core.http.request(options) end

--- A coroutine on the loop. It ends by itself, with its children: `<close>` does not take it.
---@class deployrt.Task
local Task = {}

--- Waits until the task and its children have ended. Several tasks may wait for one.
---@async
---@param timeout? number  seconds
---@return boolean? ok  false: it raised; nil: this wait ended first
---@return any ...      what it returned or raised; or the deployrt.Error "timeout", "canceled"
function Task:wait(timeout) end

--- Makes the task's present wait, or else its next one, return "canceled"; no other. One that only waits for its children passes it on to them.
function Task:cancel() end

--- Ends the task and all that it spawned as if their process had died: nothing of them runs any more, neither handlers
--- nor __close. For a simulator; who waits for the task finds it failed. A task cannot abandon itself.
function Task:abandon() end

---@return "running"|"done"|"failed"
function Task:status() end

---@class deployrt.Event
local Event = {}

--- Wakes all that wait; whoever comes later does not wait, until clear().
function Event:set() end

function Event:clear() end

---@return boolean
function Event:is_set() end

--- Waits until the event is set; at once when it is.
---@async
---@param timeout? number  seconds
---@return true? ok
---@return deployrt.Error? err  "timeout", "canceled"
function Event:wait(timeout) end

--- To be closed: `local lines <close> = core.lines(0)`.
---@class deployrt.Lines
local Lines = {}

--- The next line, without its end; nil when there is none any more. One task at a time.
---@async
---@return string? line
---@return deployrt.Error? err  "canceled"
function Lines:next() end

--- Lets go of the descriptor, which stays open.
function Lines:close() end

--- To be closed: `local editor <close> = core.editor()`.
---@class deployrt.Editor
local Editor = {}

--- The next line; nil when the input has ended. One task at a time; between two lines the terminal is as it was.
---@async
---@param prompt string
---@return string? line
---@return deployrt.Error? err  "canceled"
function Editor:next(prompt) end

--- Gives the terminal back.
function Editor:close() end

--- To be closed: `local signals <close> = core.signals("INT")`.
---@class deployrt.Signals
local Signals = {}

--- The next signal, in the order of arrival. One task at a time.
---@async
---@param timeout? number  seconds
---@return "INT"|"TERM"|"HUP"|"WINCH"|nil name
---@return deployrt.Error? err  "timeout", "canceled"
function Signals:next(timeout) end

--- Gives the signals back to their default action.
function Signals:close() end

--- A file that is only appended to. To be closed.
---@class deployrt.LogFile
local LogFile = {}

---@param text string
---@return true? ok
---@return deployrt.Error? err  "full", "system"
function LogFile:write(text) end

--- Waits until all that was written has reached the disk. One task at a time.
---@async
---@return true? ok
---@return deployrt.Error? err  "canceled"; the data are on their way all the same
function LogFile:sync() end

function LogFile:close() end

--- A host that commands run on. To be closed.
--- The functions of src/adopt.sh, for `with` of the host library: few hosts ever need them.
---@return string
function core.adopt_library() end

---@class deployrt.Link
local Link = {}

--- Calls a function of the host library (src/host.sh) in a shell that stays open: one round trip. Up to 6 run at
--- once, the others queue. A call that is timed out or canceled takes its shell with it.
---@async
---@param name string
---@param arguments? string[]  any bytes but NUL
---@param timeout? number      seconds, the time in the queue included
---@return string? output      both outputs, any bytes
---@return integer|deployrt.Error status_or_err  "lost" (the shell or the link), "closed", "timeout", "canceled"
function Link:call(name, arguments, timeout) end

---@class deployrt.ExecOptions
---@field timeout? number      seconds; then SIGHUP goes to its process group (over SSH: the channel closes)
---@field stdin? string        any bytes; default none
---@field open_stdin? boolean  standard input stays open after `stdin`; default false
---@field env? table<string,string>
---@field cwd? string          status 126 when it is not there
---@field max_output? integer  bytes of both outputs together; default 64 MiB
---@field library? boolean     the command is a function of src/host.sh
---@field mark? string         hexadecimal digits that the log-in shell prints in a line of their own before the command begins

---@class deployrt.ExecResult
---@field status integer  0 when a signal ended it
---@field signal? string  "TERM", "KILL", ...; "other" beyond 15
---@field signal_number? integer
---@field stdout string
---@field stderr string

--- Runs a command and waits for its end. Any status is a result.
---@async
---@param command string[]  argv; never a shell line
---@param options? deployrt.ExecOptions
---@return deployrt.ExecResult? result
---@return deployrt.Error? err  "timeout", "canceled", "output", "lost"
function Link:exec(command, options) end

--- Starts a command whose output is read as it comes.
---@async
---@param command string[]
---@param options? deployrt.ExecOptions  without timeout
---@return deployrt.Stream
function Link:stream(command, options) end

--- Sends a request to an address that is reached from the host, and returns all that comes back until it is closed.
---@async
---@param address string  an IP address, a name, or the path of a unix socket
---@param port integer?   nil for a path
---@param request string
---@param options? {timeout?: number}  seconds of silence; default 10
---@return string? answer
---@return deployrt.Error? err  "refused", "unresolved", "timeout", "canceled", "lost", ...
function Link:talk(address, port, request, options) end

--- Whether an address accepts connections from the host.
---@async
---@param address string   an IP address, a name, or the path of a unix socket
---@param port integer?
---@param timeout? number  seconds; default 10
---@return true? ok
---@return deployrt.Error? err  "refused", "unresolved", "timeout", "canceled", "lost", ...
function Link:dial(address, port, timeout) end

--- A socket of this process whose other end is an address as the host reaches it, for core.connect{fd=} and
--- core.http.request{fd=}, which take it over. A peer that cannot be reached is seen as one that hung up.
---@param address string
---@param port integer
---@return integer? fd
---@return deployrt.Error? err  "system"
function Link:forward(address, port) end

---@return "open"|"opening"|"lost"|"closed" state
---@return string? why  of a lost one
function Link:state() end

--- Ends the shells and the connection; calls that wait get "closed". A second close does nothing.
function Link:close() end

--- Output of a command while it runs. To be closed, which hangs up on the command.
---@class deployrt.Stream
local Stream = {}

--- The next piece of output: text and 1 (standard output) or 2 (standard error); at the end false and the status.
---@async
---@param timeout? number  seconds
---@return string|false|nil text
---@return integer|deployrt.Error stream_status_or_err  "timeout", "canceled", "lost"
---@return string? signal          at the end: "KILL", where one ended the command
---@return integer? signal_number
function Stream:read(timeout) end

function Stream:close() end

return core
