-- fixture.lua -- All that specs need, under one name: the machine, load, a user's own HAProxy, an application.
local app = require "spec.support.app"

local fixture = setmetatable({}, { __index = require "spec.support.machine" })

fixture.load = require "spec.support.load".start
fixture.haproxy = require "spec.support.haproxy".start
fixture.app, fixture.due = app.new, app.due

--- That each of these parts is in a text.
---@param text string
---@param ... string
function fixture.contains(text, ...)
  local assert = require "luassert"
  for _, part in ipairs { ... } do assert.truthy(text:find(part, 1, true), ("expected %q in:\n%s"):format(part, text)) end
end

return fixture
