local core = require "deployrt.core"

local directory, port, tls_port
local NGINX = [[
pid %s/pid;
error_log %s/error.log;
events {}
http {
  access_log off;
  client_body_temp_path %s/body; proxy_temp_path %s/proxy; fastcgi_temp_path %s/fastcgi;
  uwsgi_temp_path %s/uwsgi; scgi_temp_path %s/scgi;
  auth_delay 60s;
  server {
    listen 127.0.0.1:%d;
    listen unix:%s/socket;
    root %s/root;
    location = /method { return 200 "$request_method $content_length [$content_type] $http_host"; }
    location = /headers { add_header X-Two one; add_header X-Two two; add_header X-Empty "";
                          return 200 "$http_x_name|$http_x_empty|$http_user_agent|$http_accept"; }
    location = /connection { return 200 "$connection"; }
    location = /missing { return 404 "no"; }
    location = /nothing { return 204; }
    location = /old { return 302 /method; }
    location = /elsewhere { return 302 ftp://127.0.0.1/; }
    location = /loop { return 302 /loop; }
    location = /dropped { return 444; }
    location = /never { auth_basic x; auth_basic_user_file %s/users; }
    location = /slow { limit_rate 1; alias %s/root/large; }
  }
  server {
    listen 127.0.0.1:%d ssl;
    ssl_certificate %s/cert.pem; ssl_certificate_key %s/key.pem;
    location / { return 200 "secure"; }
  }
}
]]

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  file:write(text)
end

local function read(path)
  local file <close> = assert(io.open(path, "r"))
  return file:read("a")
end

local function used_ports()
  local used = {}
  for hex in read("/proc/net/tcp"):gmatch("%d+: %x+:(%x+) ") do used[tonumber(hex, 16)] = true end
  return used
end

local function free_port()
  local used = used_ports()
  while true do
    local candidate = math.random(20000, 30000)
    if not used[candidate] then return candidate end
  end
end

local function start_nginx()
  local d = directory
  port, tls_port = free_port(), free_port()
  write(d .. "/nginx.conf", NGINX:format(d, d, d, d, d, d, d, port, d, d, d, d, tls_port, d, d))
  return os.execute(("nginx -p %s -e %s/error.log -c %s/nginx.conf 2>%s/stderr"):format(d, d, d, d))
end

local function request(opts)
  local ok, response, err = core.run(function() return core.http.request(opts) end)
  assert(ok, response)
  return response, err
end

local function get(path, opts)
  opts = opts or {}
  opts.url = ("http://127.0.0.1:%d%s"):format(port, path)
  return request(opts)
end

local function failure(opts)
  local response, err = request(opts)
  assert.is_nil(response)
  return err
end

local function url(path)
  return ("http://127.0.0.1:%d%s"):format(port, path)
end

setup(function()
  directory = os.tmpname()
  os.remove(directory)
  assert(os.execute("mkdir -m 755 " .. directory .. " " .. directory .. "/root"))
  write(directory .. "/root/large", ("x"):rep(100000))
  write(directory .. "/users", "")
  assert(os.execute(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    .. " -subj /CN=localhost -keyout %s/key.pem -out %s/cert.pem 2>/dev/null"):format(directory, directory)))
  local started
  for _ = 1, 5 do
    started = start_nginx()
    if started then break end
  end
  assert(started, read(directory .. "/stderr"))
end)

local function running(pid)
  local status = io.open(("/proc/%s/status"):format(pid))
  if not status then return false end
  local state = status:read("a"):match("State:%s+(%a)")
  status:close()
  return state ~= "Z"
end

teardown(function()
  local pid = read(directory .. "/pid"):match("%d+")
  os.execute("kill -TERM " .. pid)
  local deadline = os.time() + 10
  core.run(function()
    while running(pid) and os.time() < deadline do core.sleep(0.02) end
  end)
  os.execute("rm -rf " .. directory)
end)

describe("http.request", function()
  it("gives status, body, headers and seconds", function()
    local response = assert(get("/method"))
    assert.equal(200, response.status)
    assert.equal(("GET  [] 127.0.0.1:%d"):format(port), response.body)
    assert.equal("text/plain", response.headers["content-type"])
    assert.is_true(response.seconds > 0 and response.seconds < 5)
  end)

  it("takes any status for an answer", function()
    assert.equal(404, get("/missing").status)
    local response = get("/nothing")
    assert.equal(204, response.status)
    assert.equal("", response.body)
  end)

  it("sends methods and bodies, and no headers that nobody asked for", function()
    local host = (" 127.0.0.1:%d"):format(port)
    assert.equal("POST 5 []" .. host, get("/method", { body = "a=\0b\n" }).body)
    assert.equal("POST 0 []" .. host, get("/method", { method = "POST" }).body)
    assert.equal("PUT 0 []" .. host, get("/method", { method = "PUT" }).body)
    assert.equal("DELETE  []" .. host, get("/method", { method = "DELETE" }).body)
    assert.equal("PATCH 2 [text/x]" .. host,
      get("/method", { method = "PATCH", body = "hi", headers = { ["content-type"] = "text/x" } }).body)
    local head = get("/large", { method = "HEAD", max_body = 10 })
    assert.equal("100000", head.headers["content-length"])
    assert.equal("", head.body)
  end)

  it("sends headers from a table or a list, and joins those that come twice", function()
    local headers = { ["X-Name"] = "n", ["X-Empty"] = "", Accept = "text/html" }
    local response = get("/headers", { headers = headers })
    assert.equal("n||deployrt|text/html", response.body)
    assert.equal("one, two", response.headers["x-two"])
    assert.equal("m||me|*/*", get("/headers", { headers = { "X-Name: m", "User-Agent: me" } }).body)
  end)

  it("uses a connection again, unless told not to", function()
    local ok, same, other = core.run(function()
      local first = core.http.request { url = url "/connection" }.body
      local second = core.http.request { url = url "/connection" }.body
      local third = core.http.request { url = url "/connection", no_reuse = true }.body
      return first == second, first ~= third
    end)
    assert.same({ true, true, true }, { ok, same, other })
  end)

  it("follows redirects only when told to, and only to HTTP", function()
    assert.equal(302, get("/old").status)
    local response = get("/old", { follow = true })
    assert.equal(200, response.status)
    assert.is_nil(response.headers.location)
    local _, err = get("/elsewhere", { follow = true })
    assert.equal("http", err.code)
    _, err = get("/loop", { follow = true })
    assert.equal("http", err.code)
    assert.matches("redirects", err.message)
  end)

  it("connects to the address or the unix socket that it is given", function()
    local address = ("127.0.0.1:%d"):format(port)
    local shop = "http://shop.example/method"
    assert.equal("GET  [] shop.example", request { url = shop, address = address }.body)
    assert.equal("GET  [] shop.example", request { url = shop, unix_socket = directory .. "/socket" }.body)
    local err = failure { url = "http://shop.example/", unix_socket = directory .. "/none" }
    assert.equal("refused", err.code)
  end)

  it("ignores the environment's proxy", function()
    local command = ([[http_proxy=http://127.0.0.1:1 lua5.4 -e 'package.cpath = %q
      local core = require "deployrt.core"
      print(core.run(function() return core.http.request { url = %q }.status end))' 2>&1]]):format(
      package.cpath, url "/method"):gsub("\\\n", "\n")
    local pipe <close> = assert(io.popen(command))
    assert.equal("true\t200\n", pipe:read("a"))
  end)

  it("verifies certificates, unless told not to", function()
    local secure = ("https://127.0.0.1:%d/"):format(tls_port)
    local err = failure { url = secure }
    assert.equal("http", err.code)
    assert.matches("certificate", err.message)
    assert.equal("secure", request { url = secure, verify = false }.body)
  end)

  it("runs requests of many tasks at once", function()
    local ok, total = core.run(function()
      local tasks, sum = {}, 0
      for i = 1, 100 do
        tasks[i] = core.spawn(function() return core.http.request({ url = url "/method" }).status end)
      end
      for _, task in ipairs(tasks) do sum = sum + select(2, task:wait()) end
      return sum
    end)
    assert.is_true(ok)
    assert.equal(20000, total)
  end)
end)

describe("errors of http.request", function()
  it("say that nobody listens", function()
    local closed = free_port()
    local err = failure { url = ("http://127.0.0.1:%d/x"):format(closed) }
    assert.equal("refused", err.code)
    assert.equal(("GET http://127.0.0.1:%d/x: Connection refused"):format(closed), err.message)
  end)

  it("say that a name is unknown", function()
    local err = failure { url = "http://nowhere.invalid/", timeout = 30 }
    assert.equal("unresolved", err.code)
    assert.matches("nowhere.invalid", err.message, 1, true)
  end)

  it("say how far it came when the time is over", function()
    local err = failure { url = url "/never", timeout = 0.2 }
    assert.equal("timeout", err.code)
    assert.equal(("GET %s: connected, but no complete answer within 0.2 s"):format(url "/never"), err.message)
    err = failure { url = url "/slow", timeout = 0.3 }
    assert.equal("timeout", err.code)
  end)

  it("come when the timeout is over, not later", function()
    local ok, seconds = core.run(function()
      local started = core.now()
      core.http.request { url = url "/never", timeout = 0.2 }
      return core.now() - started
    end)
    assert.is_true(ok)
    assert.is_true(seconds >= 0.19 and seconds < 2, seconds) -- a timer counts from when its loop last looked at the clock
  end)

  it("refuse an answer that is too large", function()
    assert.equal(100000, #get("/large", { max_body = 100000 }).body)
    local _, err = get("/large", { max_body = 99999 })
    assert.equal("http", err.code)
    assert.equal(("GET %s: body larger than 99999 bytes"):format(url "/large"), err.message)
  end)

  it("tell of a connection that ends without an answer", function()
    local _, err = get("/dropped", { no_reuse = true })
    assert.equal("http", err.code)
    assert.matches("Empty reply", err.message)
  end)

  it("show no password and no query", function()
    local closed = free_port()
    local with_secrets = ("http://user:p%%40ss@127.0.0.1:%d/a?token=secret#part"):format(closed)
    local err = failure { url = with_secrets, method = "PUT" }
    assert.equal(("PUT http://127.0.0.1:%d/a: Connection refused"):format(closed), err.message)
    err = failure { url = "http://user:secret@127.0.0.1:nonsense/" }
    assert.equal("http", err.code)
    assert.is_nil(err.message:find("secret"))
  end)

  it("refuse other protocols", function()
    assert.equal("http", failure({ url = "file:///etc/passwd" }).code)
    assert.equal("http", failure({ url = "ftp://127.0.0.1/" }).code)
  end)

  it("come to a task that is canceled", function()
    local ok, response, err = core.run(function()
      local task = core.spawn(function() return core.http.request { url = url "/never" } end)
      core.sleep(0.05)
      task:cancel()
      return select(2, task:wait())
    end)
    assert.is_true(ok)
    assert.is_nil(response)
    assert.equal("canceled", err.code)
    assert.matches("GET " .. url "/never", err.message, 1, true)
  end)

  it("are raised for wrong options, before anything is done", function()
    local wrong = {
      { {}, "'url' is missing" },
      { { url = 1 }, "option 'url': string expected, got number" },
      { { url = "http://x/", tiemout = 1 }, "unknown option 'tiemout'" },
      { { url = "http://x/", timeout = -1 }, "option 'timeout'" },
      { { url = "http://x/", method = "GET /\r\n" }, "option 'method'" },
      { { url = "http://x/", headers = { A = "b\r\nC: d" } }, "'A' is not one header" },
      { { url = "http://x/", headers = { "no colon" } }, "'1' is not one header" },
      { { url = "http://x/", headers = { A = {} } }, "string expected, got table" },
    }
    for _, case in ipairs(wrong) do
      local ok, message = core.run(core.http.request, case[1])
      assert.is_false(ok)
      assert.matches(case[2], tostring(message), 1, true)
    end
    assert.has_error(function() core.http.request { url = "http://x/" } end)
  end)
end)
