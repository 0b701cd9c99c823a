-- turns_spec.lua -- What a journal tells of compensations that failed, and were tried again in a later life.
local turns = require "deployrt.turns"

describe("a compensation that failed", function()
  --- Whether the undo of an operation is overtaken, by a journal of operations in the order in which they ended.
  local function is_overtaken(id, ...)
    local records = {}
    for i, each in ipairs { ... } do
      local name, ok = each:match("^(%S+) ?(%l*)")
      records[#records + 1] = { type = "INTENT", id = name, n = i, op = "balancer.restore", args = {} }
      records[#records + 1] = { type = "DONE", id = name, n = i, op = "balancer.restore", ok = ok == "" }
    end
    return turns.new(records):is_overtaken(id, "balancer.restore", function() return true end)
  end

  it("is overtaken by one that undid what was done before", function()
    assert.is_true(is_overtaken("undo/#2", "/#1", "/#2", "undo/#2 failed", "undo/#1"))
  end)

  it("is not overtaken by one that comes before it on the way back, had failed as well, and was tried again", function()
    assert.is_false(is_overtaken("undo/#1", "/#1", "/#2", "undo/#2 failed", "undo/#1 failed", "undo/#2"))
  end)
end)
