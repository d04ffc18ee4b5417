-- Asks Countersign whether a request may pass, for haproxy.cfg. The variable txn.session_status gets
-- the status of the answer, and the user's identity is put into headers.
local url = "http://127.0.0.1:8080/forward-auth"
-- If callers are configured (`countersign caller new haproxy --role validator`), HAProxy's key.
local key = nil
local identity = { "x-auth-subject", "x-auth-session-id", "x-auth-tenant", "x-auth-client-id", "x-auth-scope" }

-- Returns the values of a header, which HAProxy numbers from 0.
local function values(headers, name)
    local found = {}
    for index = 0, #(headers[name] or {}) do
        if headers[name] then found[#found + 1] = headers[name][index] end
    end
    return found
end

core.register_action("countersign", { "http-req" }, function(txn, demands)
    local headers = txn.http:req_get_headers()
    local asked = { authorization = values(headers, "authorization"), cookie = values(headers, "cookie") }
    if key then asked["x-countersign-key"] = { key } end
    local query = demands == "none" and "" or "?" .. demands
    local answer = core.httpclient():get({ url = url .. query, headers = asked, timeout = 5000 })
    if not answer then return end
    txn:set_var("txn.session_status", tostring(answer.status))
    txn:set_var("txn.challenge", (values(answer.headers or {}, "www-authenticate"))[1] or "Bearer")
    if answer.status == 200 then
        for _, name in ipairs(identity) do
            local value = values(answer.headers, name)[1]
            if value and value ~= "" then txn.http:req_set_header(name, value) end
        end
    end
end, 1)
