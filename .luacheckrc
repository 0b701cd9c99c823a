-- .luacheckrc -- What luacheck expects of the Lua sources.
std = "lua54"
max_line_length = false
self = false -- a method that does not need its instance is a method all the same
files["spec"] = { std = "+busted" }
ignore = { "211/closing", "211/hangups", "211/unlocking" } -- <close> variables: their end is their use
files["lua/deployrt/new/spec.lua"] = { std = "+busted" }
