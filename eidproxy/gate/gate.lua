#!lua name=eidproxy_gate
-- The queue of the shared gate. It runs inside Redis or Valkey, so that all replicas see one order and one clock.
--
-- The rules are those of admission.py: FOREGROUND before BACKGROUND, first come first served inside a class, a
-- BACKGROUND request that has waited long enough counts as a FOREGROUND one of that age, limits, displacement.
-- In addition, every place and every slot has a lease, and every grant has a token that only grows.
--
-- Times are microseconds of the server's clock. A ticket's number is its order of arrival and, unless the clock goes
-- back, its time of arrival; a token is the same for the grant. So neither needs what an emptied server has lost.
--
-- A function call is atomic. It reads everything for a decision before it writes anything, so that an error (such as
-- a key of the wrong type) leaves no partial change.
--
-- KEYS: state, holders (by end of lease), leases of waiters, foreground and background (by number), tickets.
-- ARGV: run id of the server, lease, capacity, max_waiting, aging (0 = never), then the arguments of each function.

local CHANNEL = 'eidproxy:gate:'

local function exact(number)
  return string.format('%.0f', number)
end

local function find(gate, id)
  local record = redis.call('HGET', gate.tickets, id)
  if not record then
    return nil
  end
  local class, number, token = string.match(record, '^(%a+) (%d+) (%d+)$')
  return {class = class, number = tonumber(number), token = tonumber(token)}
end

local function keep(gate, id, ticket)
  redis.call('HSET', gate.tickets, id, ticket.class .. ' ' .. exact(ticket.number) .. ' ' .. exact(ticket.token))
end

local function drop(gate, id)
  for _, line in ipairs({gate.holders, gate.leases, gate.foreground, gate.background}) do
    redis.call('ZREM', line, id)
  end
  redis.call('HDEL', gate.tickets, id)
  gate.moved = true
end

local function tell_owner(id, word)
  redis.call('PUBLISH', CHANNEL .. string.match(id, '^[^:]*'), word .. ' ' .. id)
end

local function open(keys, args)
  local time = redis.call('TIME')
  local known = redis.call('HMGET', keys[1], 'run', 'grace_until', 'number', 'token', 'mean_hold')
  local gate = {
    state = keys[1], holders = keys[2], leases = keys[3], foreground = keys[4], background = keys[5],
    tickets = keys[6],
    now = tonumber(time[1]) * 1000000 + tonumber(time[2]),
    lease = tonumber(args[2]), capacity = tonumber(args[3]), max_waiting = tonumber(args[4]),
    aging = tonumber(args[5]),
    grace_until = tonumber(known[2] or 0), number = tonumber(known[3] or 0), token = tonumber(known[4] or 0),
    mean_hold = tonumber(known[5] or -1), moved = false,
  }
  if known[1] ~= args[1] then
    -- The server was restarted, emptied or replaced. Its leases may be old or lost, so they are deleted and nothing is
    -- granted for the length of one lease. In that time owners of slots and places report them (renew); an owner that
    -- cannot has stopped by itself.
    for index = 2, 6 do
      redis.call('DEL', keys[index])
    end
    gate.grace_until = gate.now + gate.lease
    redis.call('HSET', gate.state, 'run', args[1], 'grace_until', exact(gate.grace_until))
  end
  for _, line in ipairs({gate.holders, gate.leases}) do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', line, '-inf', exact(gate.now))) do
      drop(gate, id)
    end
  end
  return gate
end

local function close(gate)
  redis.call('HSET', gate.state, 'number', exact(gate.number), 'token', exact(gate.token),
    'mean_hold', exact(gate.mean_hold))
  if gate.moved and redis.call('ZCARD', gate.leases) > 0 then
    redis.call('PUBLISH', CHANNEL .. 'moved', 'moved')
  end
end

local function aged_before(gate)
  return gate.aging > 0 and gate.now - gate.aging or -1
end

local function grant(gate, id, ticket, lease_end)
  gate.token = math.max(gate.token + 1, gate.now)
  ticket.token = gate.token
  redis.call('ZADD', gate.holders, exact(lease_end), id)
  keep(gate, id, ticket)
end

local function line_of(gate, class)
  return class == 'foreground' and gate.foreground or gate.background
end

local function queue(gate, id, ticket)
  redis.call('ZADD', line_of(gate, ticket.class), exact(ticket.number), id)
  redis.call('ZADD', gate.leases, exact(gate.now + gate.lease), id)
  keep(gate, id, ticket)
end

-- Restart the lease of a slot or a place. An owner that presents the token of a slot gets the slot if there is room.
local function prolong(gate, id, token)
  local lease_end = exact(gate.now + gate.lease)
  if redis.call('ZSCORE', gate.holders, id) then
    redis.call('ZADD', gate.holders, lease_end, id)
  elseif token == 0 then
    redis.call('ZADD', gate.leases, lease_end, id)
  elseif redis.call('ZCARD', gate.holders) < gate.capacity then
    redis.call('ZADD', gate.holders, lease_end, id)
  else
    drop(gate, id)
  end
end

local function next_in_line(gate)
  local foreground = redis.call('ZRANGE', gate.foreground, 0, 0, 'WITHSCORES')
  local background = redis.call('ZRANGE', gate.background, 0, 0, 'WITHSCORES')
  if not foreground[1] then
    return background[1]
  end
  if background[1] then
    local arrived = tonumber(background[2])
    if arrived <= aged_before(gate) and arrived < tonumber(foreground[2]) then
      return background[1]
    end
  end
  return foreground[1]
end

-- Give free slots to waiters. The lease of the place becomes the lease of the slot and is not restarted: the owner must
-- show by a renewal that it is alive, or it loses the slot when the lease of its place ends.
local function promote(gate)
  if gate.now < gate.grace_until then
    return
  end
  while redis.call('ZCARD', gate.holders) < gate.capacity do
    local id = next_in_line(gate)
    if not id then
      return
    end
    local ticket = find(gate, id)
    local lease_end = redis.call('ZSCORE', gate.leases, id)
    if ticket and lease_end then
      redis.call('ZREM', gate.leases, id)
      redis.call('ZREM', line_of(gate, ticket.class), id)
      grant(gate, id, ticket, tonumber(lease_end))
      gate.moved = true
      tell_owner(id, 'granted')
    else
      drop(gate, id) -- part of it was deleted by hand, or evicted
    end
  end
end

local function position(gate, id, ticket)
  local rank = redis.call('ZRANK', line_of(gate, ticket.class), id)
  if not rank then
    return nil
  end
  local number = '(' .. exact(ticket.number)
  local aged = exact(aged_before(gate))
  if ticket.class == 'foreground' then
    local older = math.min(redis.call('ZCOUNT', gate.background, '-inf', number),
      redis.call('ZCOUNT', gate.background, '-inf', aged))
    return rank + older + 1
  end
  local before = redis.call('ZCARD', gate.foreground)
  if ticket.number <= aged_before(gate) then
    before = redis.call('ZCOUNT', gate.foreground, '-inf', number)
  end
  return rank + before + 1
end

-- Return what the owner of a ticket gets: state, number, token, position.
local function account(gate, id)
  local ticket = find(gate, id)
  if not ticket then
    return {'gone', 0, 0, 0}
  end
  if redis.call('ZSCORE', gate.holders, id) then
    return {'holds', ticket.number, ticket.token, 0}
  end
  local place = position(gate, id, ticket)
  if not place then
    drop(gate, id)
    return {'gone', 0, 0, 0}
  end
  return {'waits', ticket.number, 0, place}
end

-- Ask for a slot. ARGV: id, class. A call with an empty id only shows that the gate is writable.
-- Reply: mean hold, state ('holds', 'waits' or 'full'), number, token, position. A repeated call restarts the lease and
-- changes nothing else; the owner counts the lease from before the call that was answered.
local function enter(keys, args)
  local gate = open(keys, args)
  local id, class = args[6], args[7]
  local reply = {'checked', 0, 0, 0}
  promote(gate)
  if id ~= '' then
    local waiting = redis.call('ZCARD', gate.leases)
    local ticket = {class = class, number = math.max(gate.number + 1, gate.now), token = 0}
    local full = false
    if find(gate, id) then
      prolong(gate, id, 0)
    else
      if waiting == 0 and redis.call('ZCARD', gate.holders) < gate.capacity and gate.now >= gate.grace_until then
        grant(gate, id, ticket, gate.now + gate.lease)
      elseif waiting < gate.max_waiting then
        queue(gate, id, ticket)
      else
        local youngest = redis.call('ZRANGE', gate.background, -1, -1, 'WITHSCORES')
        if class == 'foreground' and youngest[1] and tonumber(youngest[2]) > aged_before(gate) then
          drop(gate, youngest[1])
          tell_owner(youngest[1], 'full')
          queue(gate, id, ticket)
        else
          full = true
        end
      end
      if not full then
        gate.number = ticket.number
      end
    end
    reply = full and {'full', 0, 0, waiting + 1} or account(gate, id)
  end
  close(gate)
  return {gate.mean_hold, unpack(reply)}
end

-- Show that the owner is alive. ARGV: id, class, number, token (0 if it waits or does not know) for each ticket.
-- Reply: mean hold, then state ('holds', 'waits' or 'gone'), number, token, position for each ticket.
local function renew(keys, args)
  local gate = open(keys, args)
  local foreign = {}
  for index = 6, #args, 4 do
    local id, token = args[index], tonumber(args[index + 3])
    local ticket = find(gate, id)
    if ticket and (token == 0 or token == ticket.token) then
      prolong(gate, id, token)
    elseif ticket then
      foreign[id] = true
    elseif gate.now < gate.grace_until and tonumber(args[index + 2]) > 0 then
      ticket = {class = args[index + 1], number = tonumber(args[index + 2]), token = token}
      if token == 0 then
        queue(gate, id, ticket)
      else
        keep(gate, id, ticket)
        prolong(gate, id, token)
      end
      gate.number = math.max(gate.number, ticket.number)
      gate.token = math.max(gate.token, token)
    end
  end
  promote(gate)
  local reply = {gate.mean_hold}
  for index = 6, #args, 4 do
    local id = args[index]
    for _, fact in ipairs(foreign[id] and {'gone', 0, 0, 0} or account(gate, id)) do
      reply[#reply + 1] = fact
    end
  end
  close(gate)
  return reply
end

-- Release the slot or the place of a ticket. ARGV: id, token (0 if unknown). A second call does nothing.
local function leave(keys, args)
  local gate = open(keys, args)
  local id, token = args[6], tonumber(args[7])
  local ticket = find(gate, id)
  if not ticket then
    drop(gate, id)
  elseif token == 0 or token == ticket.token then
    local held = gate.now - ticket.token
    if ticket.token > 0 and held >= 0 then
      gate.mean_hold = gate.mean_hold < 0 and held or gate.mean_hold + 0.2 * (held - gate.mean_hold)
    end
    drop(gate, id)
  end
  promote(gate)
  close(gate)
  return {gate.mean_hold}
end

redis.register_function('eidproxy_gate_enter', enter)
-- If memory is full, no request can enter, but requests that are in can renew their lease and leave.
redis.register_function{function_name = 'eidproxy_gate_renew', callback = renew, flags = {'allow-oom'}}
redis.register_function{function_name = 'eidproxy_gate_leave', callback = leave, flags = {'allow-oom'}}
