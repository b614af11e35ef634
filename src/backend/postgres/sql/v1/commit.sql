-- The one write path: settle, publish and write records, each transaction whole or not at all.

-- Applies a parcel: first plain acknowledgements (a_*) and plain publishes (one c_* entry per copy),
-- each set in one statement, then whole transactions (one o_* entry per step, o_tx says whose).
-- Arrays may be shorter than their set: what is missing is null. Everything has a default.
--
-- p_producer, p_parcel: a parcel takes effect once, however often it is sent; null = no memory of it.
-- p_registry: the version of `registry` that the copies were routed by; EB001 when it is old.
-- p_limited: groups among the targets of o_* that have a max_length. p_wake: groups to wake.
-- l_*: the lanes of all keyed copies. n_*: notifications, and bodies too large for one.
-- s_id: messages that o_* settles. t_*: targets of o_* publishes, from o_first, o_count of them.
-- k_*: plainly published broadcasts to be kept for replay; o_event says it of o_* publishes.
-- o_kind 0 publish, 1 settle, 2 put, 3 delete.
--
-- lost: the a_* entries (from 1) whose token was not current. results: per transaction 0, n, then n
-- figures (queues or -1 = duplicate per publish, version per put); or 2, step = lease lost;
-- or 3, step, actual = version conflict; or 4, step, group, limit = queue full. Steps count from 1.
create function commit(
    p_producer uuid default null, p_parcel bigint default null, p_registry integer default null,
    p_dedup_window bigint default null, p_published bigint default null,
    p_limited integer[] default '{}', p_wake integer[] default '{}', l_group integer[] default '{}',
    l_key text[] default '{}', n_notify text[] default '{}', n_id uuid[] default '{}',
    n_topic text[] default '{}', n_body bytea[] default '{}', a_group integer[] default '{}', a_binding integer[] default '{}',
    a_id uuid[] default '{}', a_token bigint[] default '{}', c_group integer[] default '{}',
    c_binding integer[] default '{}', c_id uuid[] default '{}', c_topic text[] default '{}',
    c_body bytea[] default '{}', c_key text[] default '{}', c_priority smallint[] default '{}',
    c_after bigint[] default '{}', c_due bigint[] default '{}', c_ttl bigint[] default '{}',
    s_id uuid[] default '{}', t_group integer[] default '{}', t_binding integer[] default '{}',
    o_tx integer[] default '{}', o_kind smallint[] default '{}', o_id uuid[] default '{}',
    o_name text[] default '{}', o_body bytea[] default '{}', o_key text[] default '{}',
    o_unique text[] default '{}', o_dedup text[] default '{}', o_error text[] default '{}',
    o_priority smallint[] default '{}', o_n bigint[] default '{}', o_group integer[] default '{}',
    o_binding integer[] default '{}', o_outcome smallint[] default '{}',
    o_after bigint[] default '{}', o_due bigint[] default '{}', o_ttl bigint[] default '{}',
    o_first integer[] default '{}', o_count integer[] default '{}', o_notify text[] default '{}',
    o_large uuid[] default '{}', k_event uuid[] default '{}', k_topic text[] default '{}',
    k_body bytea[] default '{}', o_event uuid[] default '{}',
    out lost integer[], out results bigint[]
)
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
    v_channel text := 'eventbus:' || current_schema();
    -- Takes what functions without a result return: an assignment starts no statement.
    v_nothing text;
    v_wake text;
    v_done integer[];
    v_rest integer[];
    v_group integer[];
    v_key text[];
    v_now bigint;
    v_published bigint := coalesce(p_published, 0);
    v_duplicates bigint := 0;
    v_ops refcursor;
    o record;
    v_tx integer;
    v_step bigint;
    v_values bigint[];
    v_tx_published bigint;
    v_tx_duplicates bigint;
    v_actual bigint;
    v_full bigint[];
begin
    lost := '{}';
    results := '{}';
    if p_registry is not null then
        v_nothing := hold_registry(v_channel, p_registry);
    end if;
    -- A producer's transaction ends with this call; a caller's own may stay open.
    if p_producer is not null and cardinality(n_notify) > 0
        and pg_try_advisory_xact_lock(hashtext(v_channel), 2147483647)
    then
        -- Nobody listens to broadcasts.
        n_notify := array(select u.text from unnest(n_notify) as u (text) where u.text not like 'b%');
        if cardinality(n_notify) = 0 then
            n_id := '{}';
        end if;
    end if;
    -- The clock is read here without the function: this is the way of every message.
    v_now := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    if p_producer is not null
        and cardinality(a_id) + cardinality(c_id) + cardinality(o_kind) + cardinality(n_id)
            + cardinality(k_event) > 0
    then
        insert into producers as p (producer, parcel, used_at)
        values (p_producer, p_parcel, v_now)
        on conflict (producer) do update
            set parcel = excluded.parcel, used_at = excluded.used_at, lost = null, results = null
            where p.parcel < excluded.parcel;
        if not found then
            select p.parcel, p.lost, p.results into o from producers p where p.producer = p_producer;
            if o.parcel > p_parcel then
                raise exception 'parcel % comes after parcel %', p_parcel, o.parcel
                    using errcode = 'EB006';
            end if;
            lost := coalesce(o.lost, '{}');
            results := coalesce(o.results, '{}');
            return;
        end if;
    end if;
    if cardinality(p_limited) > 0 then
        perform 1 from groups g where g.id = any (p_limited) order by g.id for update;
    end if;

    if cardinality(a_id) > 0 then
        with gone as (
            delete from messages m
            using unnest(a_group, a_binding, a_id, a_token) with ordinality as a (g, b, i, t, n)
            -- By id: the odd forms keep the planner from the index of all that is claimed.
            where m.id = a.i and m.token = a.t and m.group_id + 0 = a.g and m.binding = a.b
                and m.state + 0 = 3 and m.key is null
            returning m.group_id, a.n::integer as n
        ), counted as (
            insert into tallies (group_id, acked) select group_id, count(*) from gone group by 1
        )
        select coalesce(array_agg(n), '{}') into v_done from gone;
        if cardinality(v_done) < cardinality(a_id) then
            select array_agg(n) into v_rest from (
                select n from generate_subscripts(a_id, 1) n except select unnest(v_done)
            ) x;
        end if;
    end if;

    -- All lanes in one order, before anything else of them is touched.
    if cardinality(l_key) > 0 or cardinality(s_id) > 0 or v_rest is not null then
        select array_agg(x.g), array_agg(x.k) into v_group, v_key from (
            select t.g, t.k from unnest(l_group, l_key) as t (g, k)
            union
            select m.group_id, m.key from messages m where m.id = any (s_id) and m.key is not null
            union
            select m.group_id, m.key from unnest(v_rest) as r (n)
            join messages m on m.id = a_id[r.n] where m.key is not null
        ) x;
        if v_key is not null then
            perform lock_lanes(v_group, v_key);
        end if;
    end if;
    if v_rest is not null then
        with gone as (
            delete from messages m
            using unnest(v_rest) as r (n)
            where m.id = a_id[r.n] and m.token = a_token[r.n] and m.group_id + 0 = a_group[r.n]
                and m.binding = a_binding[r.n] and m.state + 0 = 3
            returning m.group_id, m.key, r.n
        ), counted as (
            insert into tallies (group_id, acked) select group_id, count(*) from gone group by 1
        )
        select coalesce(array_agg(n), '{}'), array_agg(group_id), array_agg(key)
        into v_done, v_group, v_key from gone;
        if v_key is not null then
            perform free_lanes(v_group, v_key);
            -- Only what has a key lets something else become ready.
            p_wake := p_wake || v_group;
        end if;
        select coalesce(array_agg(n), '{}') into lost from (
            select unnest(v_rest) as n except select unnest(v_done)
        ) x;
    end if;

    if cardinality(c_id) > 0 then
        v_now := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
        if cardinality(c_key) > 0 then
            insert into messages (due_at, accepted_at, expires_at, ttl, id, group_id, binding,
                priority, state, topic, key, body)
            select greatest(c.due, v_now), v_now, v_now + c.ttl, c.ttl, c.id, c.g, c.b, c.priority,
                case
                    when c.due > v_now then 2
                    when c.key is null then 0
                    when c.before > 0 then 1
                    when exists (
                        select 1 from messages h where h.group_id = c.g and h.key = c.key
                    ) then 1
                    else 0
                end, c.topic, c.key, c.body
            from (
                select u.g, u.b, u.id, u.topic, u.body, u.key, coalesce(u.priority, 0) as priority,
                    coalesce(u.due, v_now + u.after, v_now) as due, u.ttl, u.n,
                    row_number() over (partition by u.g, u.key order by u.n) - 1 as before
                from unnest(c_group, c_binding, c_id, c_topic, c_body, c_key, c_priority, c_after,
                    c_due, c_ttl) with ordinality
                    as u (g, b, id, topic, body, key, priority, after, due, ttl, n)
            ) c order by c.n;
            insert into tallies (group_id, accepted)
            select g, count(*) from unnest(c_group) g group by g;
        else
            with copied as (
                insert into messages (due_at, accepted_at, expires_at, ttl, id, group_id, binding,
                    priority, state, topic, body)
                select greatest(coalesce(c.due, v_now + c.after), v_now), v_now, v_now + c.ttl, c.ttl,
                    c.id, c.g, c.b, coalesce(c.priority, 0),
                    case when coalesce(c.due, v_now + c.after) > v_now then 2 else 0 end,
                    c.topic, c.body
                from unnest(c_group, c_binding, c_id, c_topic, c_body, c_priority, c_after, c_due, c_ttl)
                    as c (g, b, id, topic, body, priority, after, due, ttl)
            )
            insert into tallies (group_id, accepted)
            select g, count(*) from unnest(c_group) g group by g
            union all select 0, v_published where v_published > 0;
            -- They are counted.
            v_published := 0;
        end if;
    end if;
    if cardinality(n_id) > 0 then
        insert into large (id, stored_at, topic, body)
        select u.id, v_now, u.topic, u.body from unnest(n_id, n_topic, n_body) as u (id, topic, body);
    end if;
    if cardinality(k_event) > 0 then
        perform keep(k_event, k_topic, k_body);
    end if;
    if cardinality(n_notify) > 0 then
        perform case when u.text like 'd%' then send_foreign(u.text) else pg_notify(v_channel, u.text) end
        from unnest(n_notify) as u (text);
    end if;

    if cardinality(o_kind) > 0 then
        open v_ops for
            select u.* from unnest(o_tx, o_kind, o_id, o_name, o_body, o_key, o_unique, o_dedup,
                o_error, o_priority, o_n, o_group, o_binding, o_outcome, o_after, o_due, o_ttl,
                o_first, o_count, o_notify, o_large, o_event) with ordinality
                as u (tx, kind, id, name, body, key, unique_key, dedup, error, priority, n, group_id,
                    binding, outcome, after, due, ttl, first, count, notify, large, event, step);
        fetch v_ops into o;
        while o.tx is not null loop
            v_tx := o.tx;
            v_values := '{}';
            v_tx_published := 0;
            v_tx_duplicates := 0;
            begin
                while o.tx = v_tx loop
                    v_step := o.step;
                    if o.kind = 0 then
                        v_full := null;
                        select s.queues, s.full_queue into v_actual, v_full
                        from store(o.id, o.name, o.body, o.key, o.unique_key, o.dedup,
                            coalesce(o.priority, 0::smallint), o.after, o.due, o.ttl,
                            t_group[o.first : o.first + o.count - 1],
                            t_binding[o.first : o.first + o.count - 1],
                            p_limited, p_dedup_window) s;
                        if v_full is not null then
                            raise exception 'queue full' using errcode = 'EB004';
                        end if;
                        v_values := v_values || v_actual;
                        if v_actual < 0 then
                            v_tx_duplicates := v_tx_duplicates + 1;
                        else
                            v_tx_published := v_tx_published + 1;
                            if o.large is not null then
                                insert into large (id, stored_at, topic, body)
                                values (o.large, v_now, o.name, o.body);
                            end if;
                            if o.event is not null then
                                perform keep(array[o.event], array[o.name], array[o.body]);
                            end if;
                            if o.notify is not null then
                                if o.notify like 'd%' then
                                    perform send_foreign(o.notify);
                                else
                                    perform pg_notify(v_channel, o.notify);
                                end if;
                            end if;
                        end if;
                    elsif o.kind = 1 then
                        if not settle(o.group_id, o.binding, o.id, o.n, o.outcome, o.after,
                            o.priority, o.error)
                        then
                            raise exception 'lease lost' using errcode = 'EB002';
                        end if;
                    else
                        v_actual := write_record(o.name, o.kind = 3, o.body, o.n, o.ttl);
                        if v_actual < 0 then
                            raise exception 'version conflict' using errcode = 'EB003';
                        end if;
                        if o.kind = 2 then
                            v_values := v_values || v_actual;
                        end if;
                    end if;
                    fetch v_ops into o;
                end loop;
                results := results || 0::bigint || cardinality(v_values)::bigint || v_values;
                v_published := v_published + v_tx_published;
                v_duplicates := v_duplicates + v_tx_duplicates;
            exception
                when sqlstate 'EB002' then
                    results := results || 2::bigint || v_step;
                    v_tx := -1 - v_tx;
                when sqlstate 'EB003' then
                    results := results || 3::bigint || v_step || (-1 - v_actual);
                    v_tx := -1 - v_tx;
                when sqlstate 'EB004' then
                    results := results || 4::bigint || v_step || v_full;
                    v_tx := -1 - v_tx;
            end;
            -- The steps that a failure left over.
            while v_tx < 0 and o.tx = -1 - v_tx loop
                fetch v_ops into o;
            end loop;
        end loop;
        close v_ops;
    end if;
    if v_published + v_duplicates > 0 then
        insert into tallies (group_id, accepted, removed) values (0, v_published, v_duplicates);
    end if;
    if cardinality(p_wake) > 0 then
        v_wake := (
            select 'w' || string_agg(a.group_id::text, ',')
            from awaited a where a.group_id = any (p_wake) and a.until_at > v_now
        );
        if v_wake is not null then
            v_nothing := pg_notify(v_channel, v_wake);
        end if;
    end if;
    if p_producer is not null and cardinality(lost) + cardinality(results) > 0 then
        update producers p set lost = commit.lost, results = commit.results
        where p.producer = p_producer;
    end if;
end $$;

-- Broadcasts what is for no group: it writes nothing, so its commit waits for no disk.
create function announce(p_registry integer, n_notify text[]) returns void
language plpgsql set search_path from current as $$
declare
    v_channel text := 'eventbus:' || current_schema();
    v_unheard boolean;
    v_text text;
    v_nothing text;
begin
    -- Assignments start no statement: this is the way of every broadcast.
    v_nothing := hold_registry(v_channel, p_registry);
    v_unheard := pg_try_advisory_xact_lock(hashtext(v_channel), 2147483647);
    foreach v_text in array n_notify loop
        if v_text like 'd%' then
            perform send_foreign(v_text);
        elsif not v_unheard then
            v_nothing := pg_notify(v_channel, v_text);
        end if;
    end loop;
end $$;

-- Stores the copies of one message. queues: how many, -1 = the dedup window knew it; full_queue:
-- group and limit of the first that is full.
create function store(
    p_id uuid, p_topic text, p_body bytea, p_key text, p_unique text, p_dedup text,
    p_priority smallint, p_after bigint, p_due bigint, p_ttl bigint,
    p_group integer[], p_binding integer[], p_limited integer[], p_dedup_window bigint,
    out queues bigint, out full_queue bigint[]
)
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    v_now bigint := now_us();
    v_due bigint := coalesce(p_due, v_now + p_after, v_now);
    v_limited boolean;
    v_limit bigint;
    v_blocked boolean;
    v_fresh boolean;
begin
    queues := 0;
    if p_dedup is not null then
        insert into dedup as d (topic, id, until_at) values (p_topic, p_dedup, v_now + coalesce(p_dedup_window, 86400000000))
        on conflict (topic, id) do update set until_at = excluded.until_at where d.until_at <= v_now
        returning true into v_fresh;
        if v_fresh is null then
            queues := -1;
            return;
        end if;
    end if;
    for i in 1 .. coalesce(cardinality(p_group), 0) loop
        v_limited := p_group[i] = any (p_limited);
        if v_limited or p_unique is not null then
            perform expire(p_group[i]);
        end if;
        v_blocked := p_key is not null and exists (
            select 1 from messages m where m.group_id = p_group[i] and m.key = p_key
        );
        insert into messages (due_at, accepted_at, expires_at, ttl, id, group_id, binding, priority,
            state, topic, key, unique_key, body)
        values (greatest(v_due, v_now), v_now, v_now + p_ttl, p_ttl, p_id, p_group[i], p_binding[i],
            p_priority, case when v_due > v_now then 2 when v_blocked then 1 else 0 end, p_topic,
            p_key, p_unique, p_body)
        on conflict (group_id, binding, unique_key) where unique_key is not null do nothing;
        if not found then
            continue;
        end if;
        queues := queues + 1;
        insert into tallies (group_id, accepted) values (p_group[i], 1);
        if v_limited then
            select g.max_length into v_limit from groups g where g.id = p_group[i];
            if group_length(p_group[i]) > v_limit then
                full_queue := array[p_group[i]::bigint, v_limit];
                return;
            end if;
        end if;
    end loop;
end $$;

-- How many messages a group holds, dead letters aside.
create function group_length(p_group integer) returns bigint
language sql stable set search_path from current as $$
    select coalesce(sum(t.accepted - t.acked - t.removed - t.dead), 0)::bigint
    from tallies t where t.group_id = p_group
$$;

-- Writes or deletes a record under a precondition (null = none, 0 = must not exist). Returns its
-- version, or -1 - the version that is there when the precondition failed.
create function write_record(
    p_key text, p_delete boolean, p_value bytea, p_if_version bigint, p_ttl bigint
) returns bigint
language plpgsql set search_path from current set jit = off set enable_seqscan = off
set enable_mergejoin = off set enable_hashjoin = off as $$
declare
    r record;
    v_there bigint;
    v_version bigint;
begin
    loop
        select x.version, x.value is not null and coalesce(x.expires_at > now_us(), true) as live
        into r from records x where x.key = p_key for update;
        v_there := case when r.live then r.version else 0 end;
        if p_if_version <> v_there then
            return -1 - v_there;
        end if;
        if p_delete then
            if r.version is not null then
                update records x set value = null, expires_at = null, died = nextval('deaths')
                where x.key = p_key and x.value is not null;
            end if;
            return v_there;
        end if;
        if r.version is not null then
            update records x
            set version = x.version + 1, value = p_value, expires_at = now_us() + p_ttl, died = null
            where x.key = p_key returning x.version into v_version;
            return v_version;
        end if;
        if current_setting('transaction_isolation') <> 'read committed' then
            -- An older floor would give a version again; this lock fails (40001) when it was raised.
            perform 1 from record_floor for key share;
        end if;
        insert into records (key, version, value, expires_at)
        select p_key, f.version + 1, p_value, now_us() + p_ttl from record_floor f
        on conflict (key) do nothing returning version into v_version;
        if v_version is not null then
            return v_version;
        end if;
    end loop;
end $$;
