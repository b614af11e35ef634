-- What a publisher sees and does of its events: their copies, found by the index of messages' ids.

-- Returns the copies of an event, of one group or (null) of all: those of the message p_id (null =
-- without it), and of the messages with ids above p_low up to p_high, in the order of their ids; at
-- most about p_most of these, but all or none of one message.
create function event_copies(
    p_group integer, p_id uuid, p_low uuid, p_high uuid, p_most bigint
) returns table (seq bigint, id uuid)
language sql stable set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
    select m.seq, m.id from messages m
    where m.id = p_id and (p_group is null or m.group_id = p_group)
    union all (
        select m.seq, m.id from messages m
        where m.id > p_low and m.id <= p_high and (p_group is null or m.group_id = p_group)
        order by m.id fetch first (p_most) rows with ties
    )
$$;

-- Brings the groups that hold copies of an event up to date; returns the id of p_name.
create function sweep_event(
    p_name text, p_id uuid, p_low uuid, p_high uuid, p_most bigint
) returns integer
language plpgsql set search_path from current as $$
declare
    v_group integer := case when p_name is not null then find_group(p_name) end;
begin
    perform sweep(x.group_id, null) from (
        select distinct m.group_id
        from event_copies(v_group, p_id, p_low, p_high, p_most) c join messages m on m.seq = c.seq
    ) x;
    return v_group;
end $$;

-- Lists copies of an event.
create function event_messages(
    p_name text, p_id uuid, p_low uuid, p_high uuid, p_most bigint
) returns table (
    seq bigint, group_name text, id uuid, binding integer, topic text, state smallint,
    due_at bigint, attempts integer, priority smallint
)
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
#variable_conflict use_column
declare
    v_group integer := sweep_event(p_name, p_id, p_low, p_high, p_most);
begin
    return query
        select m.seq, g.name, m.id, m.binding, m.topic, m.state, m.due_at, m.attempts, m.priority
        from event_copies(v_group, p_id, p_low, p_high, p_most) c
        join messages m on m.seq = c.seq
        join groups g on g.id = m.group_id and not g.deleted;
end $$;

-- Applies an action to the waiting copies of an event: 0 cancel, 1 reschedule, 2 promote. `last` is
-- the id behind which there may be more of them, or null.
create function act_on_event(
    p_name text, p_id uuid, p_low uuid, p_high uuid, p_most bigint, p_action smallint, p_at bigint,
    out changed bigint, out last uuid
)
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v_group integer := sweep_event(p_name, p_id, p_low, p_high, p_most);
    v_seq bigint[];
    v_others uuid[];
    v_groups integer[];
    v_lane_group integer[];
    v_lane_key text[];
    v_now bigint;
begin
    changed := 0;
    select array_agg(c.seq order by c.seq),
        array_agg(c.id order by c.id) filter (where c.id is distinct from p_id)
    into v_seq, v_others
    from event_copies(v_group, p_id, p_low, p_high, p_most) c;
    if v_seq is null then
        return;
    end if;
    if cardinality(v_others) >= p_most then
        last := v_others[cardinality(v_others)];
    end if;
    select array_agg(distinct m.group_id),
        array_agg(m.group_id) filter (where m.key is not null),
        array_agg(m.key) filter (where m.key is not null)
    into v_groups, v_lane_group, v_lane_key
    from messages m where m.seq = any (v_seq);
    if v_groups is null then
        return;
    end if;
    if v_lane_key is not null then
        perform lock_lanes(v_lane_group, v_lane_key);
    end if;
    if p_action = 0 then
        changed := coalesce(discard(v_seq), 0);
    else
        v_now := now_us();
        update messages m set
            due_at = greatest(coalesce(p_at, v_now), v_now),
            state = case
                when p_at > v_now then 2
                when m.key is not null and exists (
                    select 1 from messages h
                    where h.group_id = m.group_id and h.key = m.key and h.seq < m.seq
                ) then 1
                else 0
            end
        where m.seq = any (v_seq)
            and case when p_action = 2 then m.state = 2 else m.state <> 3 end;
        get diagnostics changed = row_count;
    end if;
    if changed > 0 then
        perform wake(v_groups);
    end if;
end $$;
