-- What LuaRocks needs to know. Only Lua modules: a library that compiles or runs programs while it is installed is refused.
rockspec_format = "3.0"
package = "acme-strategies"
version = "1.0.0-1"
source = { url = "git+https://git.acme.example/strategies.git", tag = "v1.0.0" }
description = { summary = "How Acme deploys", license = "MIT" }
dependencies = { "lua >= 5.4" }
build = {
  type = "builtin",
  modules = {
    ["acme.edge"] = "acme/edge.lua",
    ["acme.growth"] = "acme/growth.lua",
    ["acme.two_keys"] = "acme/two_keys.lua",
    ["acme.waves"] = "acme/waves.lua",
  },
}
