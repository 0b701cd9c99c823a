-- plain_shop.lua -- Services behind a balancer on a plain host, for specs of drivers.
local assert = require "luassert"
local core = require "deployrt.core"
local haproxy = require "deployrt.balancer.haproxy"
local plain_host = require "spec.support.plain_host"

local plain_shop = {}

--- Answers its name; /slow takes a second; /cut closes without an answer, and counts how often it was asked.
local service = [[
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
cuts = 0
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True
    def log_message(self, *a): pass
    def do_GET(self):
        global cuts
        if self.path == "/cut":
            cuts += 1
            self.close_connection = True
            return
        if self.path == "/slow": time.sleep(1)
        body = (str(cuts) if self.path == "/cuts" else sys.argv[2]).encode() + b"\n"
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
]]

local host, ports, listen, running

--- Runs the body of a test inside the core's loop, where waiting is allowed.
function plain_shop.inside(fn)
  return function()
    local ok, err = true, nil
    assert(core.run(function()
      ok, err = xpcall(fn, function(e) return type(e) == "table" and e or debug.traceback(e, 2) end)
    end))
    if ok then return end
    local raised = type(err) == "table" and err.code
    error(raised and ("%s: %s\n%s"):format(err.code, err.message, err.detail or "") or err, 0)
  end
end

local function free_ports(count)
  local script = "import socket\nl = [socket.create_server(('127.0.0.1', 0)) for _ in range(%d)]\n"
    .. "print(*[s.getsockname()[1] for s in l])"
  local found = host:execute { "python3", "-c", script:format(count) }
  local list = {}
  for port in found.stdout:gmatch("%d+") do list[#list + 1] = math.tointeger(port) end
  return list
end

--- Waits until `condition` answers with something, and returns that.
---@param seconds? number  default 10
function plain_shop.await(what, condition, seconds)
  local deadline = core.now() + (seconds or 10)
  while true do
    local value = condition()
    if value then return value end
    if core.now() > deadline then error("waited in vain: " .. what, 0) end
    core.sleep(0.02)
  end
end

--- What the balancer answers, and the status in a line of its own.
function plain_shop.fetch(path, more)
  local url = ("http://127.0.0.1:%d%s"):format(listen, path)
  local argv = { "curl", "-s", "-m", "10", "-w", "%{http_code}\n", url }
  return host:execute(table.move(more or {}, 1, #(more or {}), #argv + 1, argv)).stdout
end

--- Who answered how many of so many requests, and the count of those that were no success.
function plain_shop.answers(count)
  local text = plain_shop.fetch(("/[1-%d]"):format(count))
  local tally, failed = {}, 0
  for name in text:gmatch("(web%d)\n200\n") do tally[name] = (tally[name] or 0) + 1 end
  for status in text:gmatch("(%d%d%d)\n") do failed = failed + (status == "200" and 0 or 1) end
  return tally, failed
end

function plain_shop.is_open(port)
  local url = ("http://127.0.0.1:%d/"):format(port)
  return host:execute({ "curl", "-s", "-o", "/dev/null", url }).status == 0
end

--- Starts the service of a slot; returns its pid.
function plain_shop.serve(index)
  local pid = host:spawn { "python3", "-c", service, ports[index], "web" .. index }
  plain_shop.await("service " .. index, function() return plain_shop.is_open(ports[index]) end)
  return pid
end

local function slots(count)
  local list = {}
  for i = 1, count do list[i] = { name = "web" .. i .. "-8080", address = "127.0.0.1", port = ports[i] } end
  return list
end

--- A driver for so many slots; one that runs a HAProxy is stopped in the end.
function plain_shop.open(options, count, health)
  local driver = haproxy.open(options, { app = "shop", host = host, slots = slots(count), health = health })
  if options.managed then running[#running + 1] = driver end
  return driver
end

--- Expects the call to raise such an error; returns it.
function plain_shop.refused(code, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_table(err, err)
  assert.equal(code, err.code)
  return err
end

--- A fresh host, ports for four services, for the balancer, and for its runtime API.
function plain_shop.start()
  host, running = plain_host.new(), {}
  ports = free_ports(6)
  listen = ports[5]
  return host, ports, listen, ports[6]
end

--- Where requests go from now on.
function plain_shop.ask_at(port)
  listen = port
end

--- Ends what the test started.
function plain_shop.finish()
  for _, driver in ipairs(running) do
    driver.options.drain = { timeout = 0 }
    pcall(driver.stop, driver)
  end
  host:close()
end

return plain_shop
