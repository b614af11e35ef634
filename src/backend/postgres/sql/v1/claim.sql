-- Claims, waits and leases.

-- Returns the indexes of bindings of a group; all of them when none is named.
create function served(p_group integer, p_pattern boolean[], p_text text[]) returns integer[]
language plpgsql stable set search_path from current set jit = off set enable_seqscan = off as $$
declare
    v_served integer[];
begin
    if cardinality(p_text) = 0 then
        select array_agg(b.binding) into v_served from bindings b
        where b.group_id = p_group and b.bound;
    else
        select array_agg(distinct b.binding) into v_served
        from unnest(p_pattern, p_text) as u (pattern, text)
        join bindings b on b.group_id = p_group and b.bound
            and b.pattern = u.pattern and b.text = u.text collate "C";
    end if;
    return coalesce(v_served, '{}');
end $$;

-- Returns the base of tokens after a crash, when it is on the disk with the end of the transaction.
create function new_token_base() returns bigint
language plpgsql set search_path from current as $$
declare
    v_base bigint;
begin
    -- Locks the row: of many, one raises it.
    select b.base into v_base from token_base b for update;
    select s.base into v_base from tokens_since s;
    if not found then
        update token_base b set base = b.base + 1073741824 returning b.base into v_base;
        insert into tokens_since (base) values (v_base);
        if current_setting('synchronous_commit') = 'off' then
            perform set_config('synchronous_commit', 'local', true);
        end if;
    end if;
    return v_base;
end $$;

-- Claims the best ready messages of a group. A claim that a crash undoes has not happened: what it
-- took is ready again, and its token is never given again.
create function claim(
    p_group text, p_pattern boolean[], p_text text[], p_max integer, p_lease bigint,
    p_max_deliveries integer
) returns table (
    seq bigint, id uuid, binding integer, token bigint, topic text, body bytea, key text,
    priority smallint, attempts integer, crashes integer, accepted_at bigint, lease_until bigint
)
language plpgsql rows 100 set search_path from current
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_group integer;
    v_paused boolean;
    v_served integer[];
    -- The clock is read here without the function: this is the way of every message.
    v_now bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    v_base bigint;
    v_nothing text;
begin
    select s.base into v_base from tokens_since s;
    if v_base is null then
        v_base := new_token_base();
    else
        v_nothing := set_config('synchronous_commit', 'off', true);
    end if;
    select g.id, g.paused into v_group, v_paused
    from groups g where g.name = p_group and not g.deleted;
    if v_group is null then
        v_group := find_group(p_group);
    end if;
    if exists (
        select 1 from messages m
        where m.group_id = v_group and m.state >= 2 and m.due_at <= v_now
    ) or exists (
        select 1 from messages m
        where m.group_id = v_group and m.expires_at is not null and m.state <> 3
            and m.expires_at <= v_now
    ) or exists (
        select 1 from messages m
        where m.group_id = v_group and m.state = 0 and m.crashes > 0
            and m.crashes >= p_max_deliveries
    ) then
        perform sweep(v_group, p_max_deliveries);
        v_now := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    end if;
    if v_paused then
        return;
    end if;
    if cardinality(p_text) = 0 then
        select array_agg(b.binding) into v_served from bindings b
        where b.group_id = v_group and b.bound;
    else
        v_served := served(v_group, p_pattern, p_text);
    end if;
    if cardinality(v_served) = 1 then
        return query
        with picked as materialized (
            select m.seq from messages m
            where m.group_id = v_group and m.binding = v_served[1] and m.state = 0
                and m.crashes < p_max_deliveries
                and (m.expires_at is null or m.expires_at > v_now)
            order by m.priority desc, m.seq limit p_max for update skip locked
        )
        update messages m
        set state = 3, token = v_base + nextval('tokens'), crashes = m.crashes + 1, due_at = v_now + p_lease
        from picked where m.seq = picked.seq
        returning m.seq, m.id, m.binding, m.token, m.topic, m.body, m.key, m.priority, m.attempts,
            m.crashes - 1, m.accepted_at, m.due_at;
        return;
    end if;
    return query
    with picked as materialized (
        select x.seq from unnest(v_served) as s (binding)
        cross join lateral (
            select m.seq, m.priority from messages m
            where m.group_id = v_group and m.binding = s.binding and m.state = 0
                and m.crashes < p_max_deliveries
                and (m.expires_at is null or m.expires_at > v_now)
            order by m.priority desc, m.seq limit p_max for update skip locked
        ) x
        order by x.priority desc, x.seq limit p_max
    )
    update messages m
    set state = 3, token = v_base + nextval('tokens'), crashes = m.crashes + 1, due_at = v_now + p_lease
    from picked where m.seq = picked.seq
    returning m.seq, m.id, m.binding, m.token, m.topic, m.body, m.key, m.priority, m.attempts,
        m.crashes - 1, m.accepted_at, m.due_at;
end $$;

-- Says whether a claim may succeed, else after how many microseconds to look again (null = no time
-- is known), and notes that somebody waits. fresh: nobody was known to wait before, so a publish at
-- this very moment may notify nobody.
create function peek(
    p_group text, p_pattern boolean[], p_text text[], p_await bigint,
    out ready boolean, out wait bigint, out fresh boolean
)
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
    v_group integer := find_group(p_group);
    v_served integer[];
    v_now bigint := now_us();
begin
    insert into awaited as a (group_id, until_at) values (v_group, v_now + 2 * p_await)
    on conflict (group_id) do update set until_at = excluded.until_at
        where a.until_at < v_now + p_await;
    fresh := found;
    if exists (select 1 from groups g where g.id = v_group and g.paused) then
        ready := false;
        return;
    end if;
    v_served := served(v_group, p_pattern, p_text);
    ready := exists (
        select 1 from unnest(v_served) as s (binding)
        cross join lateral (
            select 1 from messages m
            where m.group_id = v_group and m.binding = s.binding and m.state = 0
                and (m.expires_at is null or m.expires_at > v_now)
            limit 1
        ) x
    );
    if ready then
        return;
    end if;
    select least(
        (select m.due_at from messages m where m.group_id = v_group and m.state >= 2
            order by m.due_at limit 1),
        (select m.expires_at from messages m
            where m.group_id = v_group and m.expires_at is not null and m.state <> 3
            order by m.expires_at limit 1)
    ) - v_now into wait;
    ready := coalesce(wait <= 0, false);
end $$;

-- Extends leases; returns the entries (from 1) whose token is current. A crash may undo it, then the
-- lease ends earlier.
create function renew(
    p_group integer[], p_binding integer[], p_id uuid[], p_token bigint[], p_lease bigint
) returns integer[]
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_done integer[];
    v_until bigint := now_us() + p_lease;
begin
    perform set_config('synchronous_commit', 'off', true);
    with held as (
        update messages m set due_at = v_until
        from unnest(p_group, p_binding, p_id, p_token) with ordinality as a (g, b, i, t, n)
        -- By id: the odd forms keep the planner from the index of all that is claimed.
        where m.id = a.i and m.token = a.t and m.group_id + 0 = a.g and m.binding = a.b
            and m.state + 0 = 3
        returning a.n::integer as n
    )
    select coalesce(array_agg(n), '{}') into v_done from held;
    return v_done;
end $$;

-- Reads records.
create function read_records(p_keys text[]) returns table (key text, version bigint, value bytea)
language plpgsql set search_path from current set jit = off set enable_seqscan = off as $$
#variable_conflict use_column
begin
    return query select r.key, r.version, r.value from records r
        where r.key = any (p_keys) and r.value is not null
            and coalesce(r.expires_at > (select now_us()), true);
end $$;

-- Reads the records from p_from on, or after p_after when that is later, below p_below (null = no
-- end), in the order of their bytes.
create function scan_records(p_from text, p_below text, p_after text, p_limit bigint)
returns table (key text, version bigint, value bytea)
language plpgsql set search_path from current set jit = off set enable_seqscan = off as $$
#variable_conflict use_column
begin
    if p_after is not null and p_after collate "C" >= p_from collate "C" then
        return query select r.key, r.version, r.value from records r
            where r.key > p_after collate "C" and (p_below is null or r.key < p_below collate "C")
                and r.value is not null and coalesce(r.expires_at > (select now_us()), true)
            order by r.key limit p_limit;
    else
        return query select r.key, r.version, r.value from records r
            where r.key >= p_from collate "C" and (p_below is null or r.key < p_below collate "C")
                and r.value is not null and coalesce(r.expires_at > (select now_us()), true)
            order by r.key limit p_limit;
    end if;
end $$;

-- Returns the body of a broadcast that did not fit into its notification.
create function fetch_large(p_id uuid) returns bytea
language sql stable set search_path from current as $$
    select l.body from large l where l.id = p_id
$$;
