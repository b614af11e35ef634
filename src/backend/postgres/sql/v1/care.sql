-- Figures, and the care of the tables.

-- Brings every group up to this time, before it is looked at.
create function sweep_all(p_retention bigint, p_max_dead bigint) returns void
language plpgsql set search_path from current as $$
declare
    v_group integer;
begin
    for v_group in select g.id from groups g where not g.deleted order by g.id loop
        perform sweep(v_group, null);
        perform trim_dead(v_group, p_retention, p_max_dead);
    end loop;
end $$;

-- The figures of every group, and of the bus in the row without a name (ready = records).
create function figures() returns table (
    name text, bindings text[], paused boolean, ready bigint, delayed bigint, in_flight bigint,
    dead bigint, oldest bigint, accepted bigint, acked bigint, retried bigint,
    expired_leases bigint, removed bigint
)
language sql volatile set search_path from current as $$
    with held as (
        select m.group_id, count(*) filter (where m.state < 2) as ready,
            count(*) filter (where m.state = 2) as delayed,
            count(*) filter (where m.state = 3) as in_flight,
            min(m.accepted_at) filter (where m.state < 2) as oldest
        from messages m group by 1
    ), counted as (
        select t.group_id, sum(t.accepted)::bigint as accepted, sum(t.acked)::bigint as acked,
            sum(t.retried)::bigint as retried, sum(t.expired_leases)::bigint as expired_leases,
            sum(t.removed)::bigint as removed
        from tallies t group by 1
    ), letters as (
        select d.group_id, count(*) as dead from dead_letters d group by 1
    ), texts as (
        select b.group_id, array_agg(b.text order by b.binding) as texts
        from bindings b where b.bound group by 1
    )
    select g.name, coalesce(x.texts, '{}'), g.paused, coalesce(h.ready, 0), coalesce(h.delayed, 0),
        coalesce(h.in_flight, 0), coalesce(l.dead, 0), greatest(now_us() - h.oldest, 0),
        coalesce(c.accepted, 0), coalesce(c.acked, 0), coalesce(c.retried, 0),
        coalesce(c.expired_leases, 0), coalesce(c.removed, 0)
    from groups g
    left join held h on h.group_id = g.id
    left join counted c on c.group_id = g.id
    left join letters l on l.group_id = g.id
    left join texts x on x.group_id = g.id
    where not g.deleted
    union all
    select null, '{}', false, (
            select count(*) from records r
            where r.value is not null and coalesce(r.expires_at > (select now_us()), true)
        ), 0, 0, 0, null, coalesce(sum(c.accepted), 0)::bigint, 0, 0, 0,
        coalesce(sum(c.removed), 0)::bigint
    from counted c where c.group_id = 0
$$;

-- Sums up the tallies, and with p_full forgets what nobody can ask for any more. One client at a
-- time does it; the others pass by.
create function maintain(
    p_published bigint, p_full boolean, p_retention bigint, p_max_dead bigint,
    p_max_tombstones bigint
) returns void
language plpgsql set search_path from current as $$
declare
    v_now bigint := now_us();
    v_group integer;
    v_floor bigint;
begin
    if p_published > 0 then
        insert into tallies (group_id, accepted) values (0, p_published);
    end if;
    -- Version 0 of the registry is never published by.
    if not pg_try_advisory_xact_lock(hashtext(channel()), 0) then
        return;
    end if;
    if (select count(*) from (select 1 from tallies limit 200) x) = 200 then
        with gone as (
            delete from tallies where ctid = any (array(select t.ctid from tallies t limit 50000))
            returning *
        )
        insert into tallies (group_id, accepted, acked, retried, expired_leases, removed, dead)
        select group_id, sum(accepted), sum(acked), sum(retried), sum(expired_leases), sum(removed),
            sum(dead)
        from gone group by group_id;
    end if;
    if not p_full then
        return;
    end if;
    update records r set value = null, expires_at = null, died = nextval('deaths')
    where r.key in (
        select x.key from records x where x.expires_at <= v_now limit 50000 for update skip locked
    );
    with gone as (
        delete from records r
        where r.died <= (
            select x.died from records x where x.died is not null
            order by x.died desc offset p_max_tombstones limit 1
        )
        returning r.version
    )
    select max(version) into v_floor from gone;
    update record_floor f set version = v_floor where f.version < v_floor;
    delete from dedup d where d.ctid = any (array(
        select x.ctid from dedup x where x.until_at <= v_now limit 200000
    ));
    delete from producers p where p.used_at < v_now - 86400000000;
    delete from large l where l.stored_at < v_now - 300000000;
    for v_group in select g.id from groups g where not g.deleted order by g.id loop
        perform expire(v_group);
        perform trim_dead(v_group, p_retention, p_max_dead);
    end loop;
    -- What a client left behind that ended between the steps of an unbinding or a deletion.
    if not exists (
        select 1 from older_publishers((select r.version from registry r))
    ) then
        perform drop_group(g.id) from groups g where g.deleted;
        perform clear_waiting(b.group_id, true) from bindings b join groups g on g.id = b.group_id
        where not b.bound and not g.deleted and exists (
            select 1 from messages m
            where m.group_id = b.group_id and m.binding = b.binding and m.state <> 3
        );
    end if;
end $$;

-- What is bound to what, for clients that route by themselves; one row per binding, and at least one.
create function routes() returns table (
    version integer, id integer, name text, limited boolean, binding integer, pattern boolean,
    text text, keeps boolean, bus text, parts boolean
)
language sql stable set search_path from current set jit = off as $$
    select r.version, g.id, g.name, g.max_length is not null, b.binding, b.pattern, b.text,
        r.kept_max > 0, (select i.id::text from identity i), r.parts
    from registry r
    left join groups g on not g.deleted
    left join bindings b on b.group_id = g.id and b.bound
    order by g.id, b.binding
$$;

-- What an operator should know of: dead rows among the messages, the use of the notification queue.
create function ailments() returns table (dead_rows bigint, queue_usage double precision)
language sql volatile set search_path from current as $$
    select pg_stat_get_dead_tuples('messages'::regclass), pg_notification_queue_usage()
$$;

-- How many more dead rows the messages have than are usual beside so many others, which removing them
-- must read too; null: this role may not remove them.
create function dead_messages() returns bigint
language sql volatile set search_path from current as $$
    select pg_stat_get_dead_tuples(c.oid) - pg_stat_get_live_tuples(c.oid) / 20 from pg_class c
    where c.oid = 'messages'::regclass and pg_has_role(c.relowner, 'usage')
$$;
