-- fixture.lua -- All that specs need, under one name: the machine, load, a user's own HAProxy, an application.
local fixture = setmetatable({}, { __index = require "spec.support.machine" })

fixture.load = require "spec.support.load".start
fixture.haproxy = require "spec.support.haproxy".start
fixture.app = require "spec.support.app".new

return fixture
