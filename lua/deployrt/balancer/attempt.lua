-- attempt.lua -- A command that has a balancer do something, and how it ended.
local attempt = {}

--- Runs a command and waits for its end. One that hangs is ended, and has failed as others do: its balancer is there all the same.
---@async
---@param host deployrt.Connection
---@param argv string[]
---@param options {timeout: number, stdin?: string, cwd?: string}
---@return string? how  in words; nil: it did well
---@return {stdout: string, stderr: string} result
function attempt.run(host, argv, options)
  local ok, result = pcall(host.execute, host, argv, options)
  if not ok and result.code ~= "timeout" then error(result, 0) end
  if not ok then return ("did not end within %gs"):format(options.timeout), { stdout = "", stderr = "" } end
  if result.signal then return "was ended by SIG" .. result.signal, result end
  return result.status ~= 0 and "failed with status " .. result.status or nil, result
end

--- The end of what a command said, for an error's detail.
---@param result {stdout?: string, stderr?: string}
---@return string
function attempt.output(result)
  return ((result.stderr or "") .. (result.stdout or "")):sub(-2000)
end

return attempt
