-- Groups: what they are bound to, and what operators do to them.

-- Declares a group and adds bindings; returns the version of the registry that has them.
create function declare_group(
    p_name text, p_max_length bigint, p_pattern boolean[], p_text text[], p_regex text[]
) returns integer
language plpgsql set search_path from current as $$
declare
    v_version integer;
    v_group groups;
    v_new integer := 0;
    v_bindings integer;
begin
    select r.version into v_version from registry r for update;
    select * into v_group from groups g where g.name = p_name and not g.deleted;
    if not found then
        insert into groups (name, max_length) values (p_name, p_max_length) returning * into v_group;
        v_new := 1;
    elsif p_max_length is distinct from v_group.max_length and p_max_length is not null then
        update groups g set max_length = p_max_length where g.id = v_group.id;
        v_new := 1;
    end if;
    with wanted as (
        select u.pattern, u.text collate "C" as text, min(u.regex) as regex, min(u.n) as n
        from unnest(p_pattern, p_text, p_regex) with ordinality as u (pattern, text, regex, n)
        group by 1, 2
    ), missing as (
        select w.*, row_number() over (order by w.n) - 1 as place from wanted w
        where not exists (
            select 1 from bindings b where b.group_id = v_group.id and b.bound
                and b.pattern = w.pattern and b.text = w.text
        )
    ), added as (
        insert into bindings (group_id, binding, pattern, text, regex)
        select v_group.id, v_group.next_binding + m.place, m.pattern, m.text, m.regex from missing m
        returning 1
    )
    select count(*) into v_bindings from added;
    if v_bindings > 0 then
        update groups g set next_binding = g.next_binding + v_bindings where g.id = v_group.id;
    end if;
    if v_bindings + v_new > 0 then
        v_version := bump_registry();
    end if;
    perform wake(array[v_group.id]);
    return v_version;
end $$;

-- Raises the version of the registry and tells every client.
create function bump_registry() returns integer
language plpgsql set search_path from current as $$
declare
    v_version integer;
begin
    update registry r set version = r.version + 1 returning r.version into v_version;
    perform pg_notify(channel(), 'r' || v_version);
    return v_version;
end $$;

-- Versions of the registry before this one that a transaction still publishes by.
create function older_publishers(p_version integer) returns setof integer
language sql volatile set search_path from current as $$
    select distinct l.objid::bigint::integer from pg_locks l
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.mode = 'ShareLock'
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid = (hashtext(channel())::bigint & 4294967295)::oid
        and l.objid::bigint < p_version
$$;

-- Waits until nobody publishes by an older version; who publishes by this one is not held up.
create function quiesce(p_version integer) returns void
language plpgsql set search_path from current as $$
declare
    v_old integer;
begin
    for v_old in select older_publishers(p_version) loop
        perform pg_advisory_xact_lock(hashtext(channel()), v_old);
    end loop;
end $$;

-- Unbinds; `clear_unbound` must follow once `quiesce` returned.
create function unbind(p_name text, p_pattern boolean[], p_text text[]) returns integer
language plpgsql set search_path from current as $$
declare
    v_version integer;
    v_group integer;
begin
    select r.version into v_version from registry r for update;
    v_group := find_group(p_name);
    perform sweep(v_group, null);
    update bindings b set bound = false
    from unnest(p_pattern, p_text) as u (pattern, text)
    where b.group_id = v_group and b.bound and b.pattern = u.pattern
        and b.text = u.text collate "C";
    if found then
        v_version := bump_registry();
    end if;
    perform wake(array[v_group]);
    return v_version;
end $$;

-- Removes what waits in a group, or only in its queues that are unbound; returns how many.
create function clear_waiting(p_group integer, p_unbound boolean) returns bigint
language plpgsql set search_path from current as $$
declare
    v_unbound integer[];
    v_key text[];
    v_seq bigint[];
begin
    if p_unbound then
        select array_agg(b.binding) into v_unbound from bindings b
        where b.group_id = p_group and not b.bound;
        if v_unbound is null then
            return 0;
        end if;
    end if;
    select array_agg(distinct m.key) into v_key from messages m
    where m.group_id = p_group and m.key is not null;
    if v_key is not null then
        perform lock_lanes(array_fill(p_group, array[cardinality(v_key)]), v_key);
    end if;
    select array_agg(m.seq) into v_seq from messages m
    where m.group_id = p_group and m.state <> 3 and (not p_unbound or m.binding = any (v_unbound))
        -- Never without the lane: what was published meanwhile stays.
        and (m.key is null or m.key = any (v_key));
    return coalesce(discard(v_seq), 0);
end $$;

create function clear_unbound(p_name text) returns bigint
language sql volatile set search_path from current as $$
    select clear_waiting(find_group(p_name), true)
$$;

create function purge(p_name text) returns bigint
language plpgsql set search_path from current as $$
declare
    v_group integer := find_group(p_name);
begin
    perform sweep(v_group, null);
    return clear_waiting(v_group, false);
end $$;

-- Takes a group's name away; `drop_group` must follow once `quiesce` returned.
create function delete_group(p_name text, out id integer, out version integer)
language plpgsql set search_path from current as $$
begin
    perform 1 from registry r for update;
    id := find_group(p_name);
    update groups g set deleted = true where g.id = delete_group.id;
    update bindings b set bound = false where b.group_id = delete_group.id;
    version := bump_registry();
    perform wake(array[id]);
end $$;

-- Removes everything of a deleted group; returns how many messages and dead letters.
create function drop_group(p_group integer) returns bigint
language plpgsql set search_path from current as $$
declare
    v_messages bigint;
    v_letters bigint;
begin
    delete from messages m where m.group_id = p_group;
    get diagnostics v_messages = row_count;
    delete from dead_letters d where d.group_id = p_group;
    get diagnostics v_letters = row_count;
    delete from lanes l where l.group_id = p_group;
    delete from tallies t where t.group_id = p_group;
    delete from awaited a where a.group_id = p_group;
    delete from bindings b where b.group_id = p_group;
    delete from groups g where g.id = p_group;
    return v_messages + v_letters;
end $$;

create function pause(p_name text, p_paused boolean) returns void
language plpgsql set search_path from current as $$
declare
    v_group integer := find_group(p_name);
begin
    update groups g set paused = p_paused where g.id = v_group;
    perform wake(array[v_group]);
end $$;

-- Removes dead letters beyond the limits of age and number.
create function trim_dead(p_group integer, p_retention bigint, p_max bigint) returns void
language sql volatile set search_path from current as $$
    with gone as (
        delete from dead_letters d
        where d.group_id = p_group and (d.died_at <= (select now_us()) - p_retention or d.no in (
            select o.no from dead_letters o where o.group_id = p_group
            order by o.place desc, o.no desc offset p_max
        ))
        returning 1
    )
    insert into tallies (group_id, removed, dead)
    select p_group, count(*), -count(*) from gone having count(*) > 0
$$;

-- Lists dead letters, oldest first, after a message; copies of one message are not torn apart.
create function list_dead(
    p_name text, p_after uuid, p_limit bigint, p_retention bigint, p_max bigint
) returns table (
    binding integer, id uuid, topic text, body bytea, reason smallint, error text,
    attempts integer, crashes integer, died_at bigint
)
language plpgsql set search_path from current as $$
#variable_conflict use_column
declare
    v_group integer := find_group(p_name);
    v_after bigint;
    v_last bigint;
begin
    perform sweep(v_group, null);
    perform trim_dead(v_group, p_retention, p_max);
    select min(d.place) into v_after from dead_letters d
    where d.group_id = v_group and d.id = p_after;
    select max(x.place) into v_last from (
        select d.place from dead_letters d
        where d.group_id = v_group and d.place > coalesce(v_after, 0)
        order by d.place, d.no limit p_limit
    ) x;
    return query select d.binding, d.id, d.topic, d.body, d.reason, d.error, d.attempts, d.crashes,
            d.died_at
        from dead_letters d
        where d.group_id = v_group and d.place > coalesce(v_after, 0) and d.place <= v_last
        order by d.place, d.no;
end $$;

-- Takes dead letters that were decided here (crashed, expired, undecodable, unsigned) and that nobody has been
-- told of: each is given to one caller.
create function dead_news(p_name text) returns table (
    binding integer, id uuid, topic text, body bytea, reason smallint, error text,
    attempts integer, crashes integer, died_at bigint
)
language plpgsql set search_path from current as $$
#variable_conflict use_column
declare
    v_group integer := find_group(p_name);
begin
    perform sweep(v_group, null);
    -- Most of the time there is nothing: then nothing is written.
    if not exists (select 1 from dead_letters d where d.group_id = v_group and d.is_news) then
        return;
    end if;
    return query
        with told as (
            update dead_letters d set is_news = false
            where d.no = any (array(
                select n.no from dead_letters n where n.group_id = v_group and n.is_news
                order by n.no limit 100 for update skip locked
            ))
            returning d.*
        )
        select d.binding, d.id, d.topic, d.body, d.reason, d.error, d.attempts, d.crashes, d.died_at
        from told d order by d.no;
end $$;

-- Queues dead letters again; returns how many, or raises EB004 when they do not all find room.
create function retry_dead(p_name text, p_ids uuid[], p_retention bigint, p_max bigint)
returns bigint
language plpgsql set search_path from current as $$
declare
    v_group integer := find_group(p_name);
    v_limit bigint;
    v_asked bigint;
    v_key text[];
    v_now bigint;
    v_moved bigint := 0;
    d record;
begin
    perform sweep(v_group, null);
    perform trim_dead(v_group, p_retention, p_max);
    select g.max_length into v_limit from groups g where g.id = v_group;
    if v_limit is not null then
        select g.max_length into v_limit from groups g where g.id = v_group for update;
        select count(*) into v_asked from dead_letters l
        where l.group_id = v_group and l.id = any (p_ids);
        if group_length(v_group) + v_asked > v_limit then
            raise exception 'group "%" is full: limit % messages', p_name, v_limit
                using errcode = 'EB004', detail = v_limit::text;
        end if;
    end if;
    select array_agg(distinct l.key) into v_key from dead_letters l
    where l.group_id = v_group and l.id = any (p_ids) and l.key is not null;
    if v_key is not null then
        perform lock_lanes(array_fill(v_group, array[cardinality(v_key)]), v_key);
    end if;
    v_now := now_us();
    for d in
        select l.*, b.binding as queue from unnest(p_ids) with ordinality as u (id, n)
        join dead_letters l on l.group_id = v_group and l.id = u.id
            and (l.key is null or l.key = any (v_key))
        join bindings b on b.group_id = v_group and b.bound
            and b.pattern = l.pattern and b.text = l.text
        order by u.n, l.no for update of l
    loop
        insert into messages (due_at, accepted_at, expires_at, ttl, id, group_id, binding, priority,
            state, topic, key, unique_key, body)
        values (v_now, v_now, v_now + d.ttl, d.ttl, d.id, v_group, d.queue, d.priority,
            case when d.key is not null and exists (
                select 1 from messages m where m.group_id = v_group and m.key = d.key
            ) then 1 else 0 end, d.topic, d.key, d.unique_key, d.body)
        on conflict (group_id, binding, unique_key) where unique_key is not null do nothing;
        if found then
            delete from dead_letters l where l.no = d.no;
            v_moved := v_moved + 1;
        end if;
    end loop;
    if v_key is not null then
        perform free_lanes(array_fill(v_group, array[cardinality(v_key)]), v_key);
    end if;
    if v_moved > 0 then
        insert into tallies (group_id, dead) values (v_group, -v_moved);
        perform wake(array[v_group]);
    end if;
    return v_moved;
end $$;

create function discard_dead(p_name text, p_ids uuid[], p_retention bigint, p_max bigint)
returns bigint
language plpgsql set search_path from current as $$
declare
    v_group integer := find_group(p_name);
    v_count bigint;
begin
    perform trim_dead(v_group, p_retention, p_max);
    delete from dead_letters d where d.group_id = v_group and d.id = any (p_ids);
    get diagnostics v_count = row_count;
    if v_count > 0 then
        insert into tallies (group_id, removed, dead) values (v_group, v_count, -v_count);
    end if;
    return v_count;
end $$;
