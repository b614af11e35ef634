-- Claims, waits and leases.

-- Returns the indexes of bindings of a group; all of them when none is named.
create function served(p_group integer, p_pattern boolean[], p_text text[]) returns integer[]
language plpgsql stable set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
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

-- Says after how many microseconds a claim may succeed (0 = now, at most p_await; no bindings: none
-- can), and notes that somebody waits. When nobody was known to wait before, a publish at this very
-- moment may notify nobody, so the answer is short.
create function look_after(p_group integer, p_served integer[], p_await bigint) returns bigint
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
    v_now bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    v_until bigint;
    v_due bigint;
    v_ready boolean;
    v_most bigint;
begin
    select
        (select a.until_at from awaited a where a.group_id = p_group),
        least(
            (select m.due_at from messages m where m.group_id = p_group and m.state >= 2
                order by m.due_at limit 1),
            (select m.expires_at from messages m
                where m.group_id = p_group and m.expires_at is not null and m.state <> 3
                order by m.expires_at limit 1)
        ),
        exists (
            select 1 from unnest(p_served) as s (binding)
            cross join lateral (
                select 1 from messages m
                where m.group_id = p_group and m.binding = s.binding and m.state = 0
                    and (m.expires_at is null or m.expires_at > v_now)
                limit 1
            ) x
        )
    into v_until, v_due, v_ready;
    v_most := p_await;
    if v_until is null or v_until < v_now + p_await then
        insert into awaited as a (group_id, until_at) values (p_group, v_now + 2 * p_await)
        on conflict (group_id) do update set until_at = excluded.until_at;
        v_most := least(p_await, 50000);
    end if;
    if p_served is null then
        return v_most;
    elsif v_ready or v_due <= v_now then
        return 0;
    end if;
    -- A little later than due, so that the next look finds it due.
    return least(v_due - v_now + 1000, v_most);
end $$;

-- Claims the best ready messages of a group. A claim that a crash undoes has not happened: what it
-- took is ready again, and its token is never given again. With p_await, one that gets nothing notes
-- that somebody waits: its one row has no seq and says in lease_until what `look_after` says. With
-- p_again, one whose answer was lost: what it took, if anything, is handed out once more.
create function claim(
    p_group text, p_pattern boolean[], p_text text[], p_max integer, p_lease bigint,
    p_max_deliveries integer, p_await bigint default null, p_claim bigint default null,
    p_again boolean default false
) returns table (
    seq bigint, id uuid, binding integer, token bigint, topic text, body bytea, key text,
    priority smallint, attempts integer, crashes integer, accepted_at bigint, lease_until bigint
)
language plpgsql rows 100 set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_group integer;
    v_paused boolean;
    v_served integer[];
    -- The clock is read here without the function: this is the way of every message.
    v_now bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    v_base bigint;
    v_nothing text;
    v_found integer;
begin
    -- One look for all, as each statement has its price; also for the usual number of bindings.
    select s.base, g.id, g.paused, (
            select array_agg(b.binding) from bindings b
            where b.group_id = g.id and b.bound and case cardinality(p_text)
                when 0 then true
                when 1 then b.pattern = p_pattern[1] and b.text = p_text[1] collate "C"
            end
        )
    into v_base, v_group, v_paused, v_served
    from groups g left join tokens_since s on true
    where g.name = p_group and not g.deleted;
    if v_group is null then
        v_group := find_group(p_group);
    end if;
    if v_base is null then
        v_base := new_token_base();
    else
        v_nothing := set_config('synchronous_commit', 'off', true);
    end if;
    if p_again then
        return query
        update messages m set due_at = v_now + p_lease
        where m.group_id = v_group and m.state >= 2 and m.state = 3 and m.claim = p_claim
        returning m.seq, m.id, m.binding, m.token, m.topic, m.body, m.key, m.priority, m.attempts,
            m.crashes - 1, m.accepted_at, m.due_at;
        if found then
            return;
        end if;
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
        v_served := null;
    elsif cardinality(p_text) > 1 then
        v_served := served(v_group, p_pattern, p_text);
    end if;
    v_found := 0;
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
        set state = 3, token = v_base + nextval('tokens'), crashes = m.crashes + 1,
            due_at = v_now + p_lease, claim = p_claim
        from picked where m.seq = picked.seq
        returning m.seq, m.id, m.binding, m.token, m.topic, m.body, m.key, m.priority, m.attempts,
            m.crashes - 1, m.accepted_at, m.due_at;
        get diagnostics v_found = row_count;
    elsif cardinality(v_served) > 1 then
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
        set state = 3, token = v_base + nextval('tokens'), crashes = m.crashes + 1,
            due_at = v_now + p_lease, claim = p_claim
        from picked where m.seq = picked.seq
        returning m.seq, m.id, m.binding, m.token, m.topic, m.body, m.key, m.priority, m.attempts,
            m.crashes - 1, m.accepted_at, m.due_at;
        get diagnostics v_found = row_count;
    end if;
    if p_await is not null and v_found = 0 then
        seq := null;
        lease_until := look_after(v_group, v_served, p_await);
        return next;
    end if;
end $$;

-- Says what `look_after` says, of bindings by name.
create function peek(p_group text, p_pattern boolean[], p_text text[], p_await bigint)
returns bigint
language plpgsql set search_path from current as $$
declare
    v_group integer := find_group(p_group);
begin
    if exists (select 1 from groups g where g.id = v_group and g.paused) then
        return look_after(v_group, null, p_await);
    end if;
    return look_after(v_group, served(v_group, p_pattern, p_text), p_await);
end $$;

-- Extends leases; returns the entries (from 1) whose token is current. A crash may undo it, then the
-- lease ends earlier.
create function renew(
    p_group integer[], p_binding integer[], p_id uuid[], p_token bigint[], p_lease bigint
) returns integer[]
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
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
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
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
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
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

-- Returns broadcasts that their notifications only name.
create function fetch_large(p_id uuid[]) returns table (id uuid, topic text, body bytea)
language sql stable set search_path from current set enable_seqscan = off as $$
    select l.id, l.topic, l.body from large l where l.id = any (p_id)
$$;
