-- The broadcasts kept for replay; docs/decisions/0011-replay.md says why they look so.
--
-- Publishers append to `kept` and `kept_fresh` and wait for nobody. Positions are given afterwards,
-- to what is committed by then, by whoever reads: one at a time, so that positions become visible in
-- order, without a hole, however late a transaction commits.

-- The bodies; written once.
create table kept (
    no bigint generated always as identity primary key,
    topic text collate "C" not null,
    body bytea not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
alter table kept alter column body set storage external;

-- What has no position yet.
create table kept_fresh (
    no bigint primary key,
    accepted_at bigint not null,
    event uuid not null
) with (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

create table kept_order (
    position bigint primary key,
    no bigint not null,
    accepted_at bigint not null,
    event uuid not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index kept_order_event on kept_order (event, position);

-- One row: the position of the newest broadcast, kept or not.
create table kept_newest (
    one boolean primary key default true check (one),
    position bigint not null
) with (fillfactor = 50);
insert into kept_newest (position) values (0);

-- Says what is kept from now on: for how long (null = for ever), and how many (0 = nothing).
create function retain(p_age bigint, p_max bigint) returns void
language plpgsql set search_path from current as $$
begin
    if exists (
        select 1 from registry r
        where r.kept_max = p_max and r.kept_age is not distinct from p_age
    ) then
        return;
    end if;
    update registry r set kept_age = p_age, kept_max = p_max;
    perform bump_registry();
    if p_max = 0 then
        perform number_kept();
        delete from kept_order;
        delete from kept;
    end if;
end $$;

-- Says whether notifications only name broadcasts from now on.
create function set_bodies(p_parts boolean) returns void
language plpgsql set search_path from current as $$
begin
    update registry r set parts = p_parts where r.parts <> p_parts;
    if found then
        perform bump_registry();
    end if;
end $$;

-- Keeps broadcasts, in order.
create function keep(p_event uuid[], p_topic text[], p_body bytea[]) returns void
language plpgsql set search_path from current as $$
declare
    v_now bigint := now_us();
    v_no bigint[];
begin
    with added as (
        insert into kept (topic, body)
        select u.topic, u.body from unnest(p_topic, p_body) with ordinality as u (topic, body, n)
        order by u.n
        returning no
    )
    select array_agg(a.no order by a.no) into v_no from added a;
    insert into kept_fresh (no, accepted_at, event)
    select u.no, v_now, u.event from unnest(v_no, p_event) as u (no, event);
end $$;

-- Gives positions to what is committed and has none.
create function number_kept() returns void
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
begin
    if not exists (select 1 from kept_fresh) then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtext(channel()), -1);
    with fresh as (
        delete from kept_fresh f returning f.no, f.accepted_at, f.event
    ), ordered as (
        insert into kept_order (position, no, accepted_at, event)
        select n.position + row_number() over (order by f.no), f.no, f.accepted_at, f.event
        from fresh f cross join kept_newest n
        returning 1
    )
    update kept_newest n set position = n.position + (select count(*) from ordered)
    where exists (select 1 from ordered);
end $$;

-- The position before the oldest that is kept, that of the newest, and the time since which
-- everything is kept as far as age goes (null = ever).
create function kept_range(out before bigint, out newest bigint, out horizon bigint, out most bigint)
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
declare
    v_first bigint;
begin
    select r.kept_max, now_us() - r.kept_age into most, horizon from registry r;
    select n.position into newest from kept_newest n;
    select min(o.position) into v_first from kept_order o;
    before := greatest(coalesce(v_first - 1, newest), newest - most);
    if horizon is not null then
        select o.position - 1 into v_first from kept_order o
        where o.position > before and o.accepted_at >= horizon order by o.position limit 1;
        before := coalesce(v_first, newest);
    end if;
end $$;

-- Finds where a replay begins. p_kind: 0 the oldest, 1 behind a position, 2 behind the oldest
-- broadcast of an event, 3 a time. cut: what was asked for is not kept any more.
create function find_kept(
    p_kind smallint, p_value bigint, p_event uuid, out place bigint, out cut boolean
)
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
declare
    k record;
begin
    perform number_kept();
    k := kept_range();
    place := k.before;
    cut := false;
    if p_kind = 1 then
        place := p_value;
    elsif p_kind = 2 then
        select min(o.position) into place from kept_order o
        where o.event = p_event and o.position > k.before;
    elsif p_kind = 3 then
        select o.position - 1 into place from kept_order o
        where o.position > k.before and o.accepted_at >= p_value order by o.position limit 1;
        place := coalesce(place, k.newest);
        cut := k.before > 0 and place = k.before
            and (coalesce(p_value < k.horizon, false) or k.newest - k.before >= k.most);
    end if;
    if place is null or place < k.before or place > k.newest then
        place := k.before;
        cut := true;
    end if;
end $$;

-- Reads what follows a position: of these topics, or with these beginnings. Rows of kind 0 = what
-- was there is gone, 1 = a broadcast, 2 = the end: how far it was read, and whether there is more.
create function read_kept(
    p_after bigint, p_most integer, p_bytes bigint, p_topic text[], p_prefix text[]
) returns table (kind smallint, place bigint, topic text, body bytea, more boolean)
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
    k record;
    o record;
    v_end bigint := p_after;
    v_more boolean := false;
    v_looked integer := 0;
    v_most integer := p_most;
    v_bytes bigint := p_bytes;
begin
    perform number_kept();
    k := kept_range();
    if v_end < k.before or v_end > k.newest then
        return query select 0::smallint, null::bigint, null, null::bytea, null::boolean;
        v_end := k.before;
    end if;
    for o in
        select x.position as at, m.topic as topic, m.body as body
        from kept_order x join kept m on m.no = x.no
        where x.position > v_end and x.position <= k.newest order by x.position limit 5000
    loop
        if v_most <= 0 or v_bytes <= 0 then
            v_more := true;
            exit;
        end if;
        if o.at > v_end + 1 then
            return query select 0::smallint, null::bigint, null, null::bytea, null::boolean;
        end if;
        v_end := o.at;
        v_looked := v_looked + 1;
        if o.topic = any (p_topic)
            or exists (select 1 from unnest(p_prefix) as u (text) where starts_with(o.topic, u.text))
        then
            v_most := v_most - 1;
            v_bytes := v_bytes - octet_length(o.body);
            return query select 1::smallint, o.at, o.topic, o.body, null::boolean;
        end if;
    end loop;
    return query select 2::smallint, v_end, null, null::bytea, v_more or v_looked = 5000;
end $$;

-- Forgets what is kept no longer.
create function trim_kept() returns void
language plpgsql set search_path from current
set jit = off set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
set enable_bitmapscan = off as $$
declare
    k record;
    v_no bigint[];
begin
    if (select r.kept_max = 0 from registry r) then
        return;
    end if;
    k := kept_range();
    loop
        with gone as (
            delete from kept_order x where x.position = any (array(
                select o.position from kept_order o
                where o.position <= k.before order by o.position limit 10000 for update skip locked
            ))
            returning x.no
        )
        select array_agg(no) into v_no from gone;
        exit when v_no is null;
        delete from kept m where m.no = any (v_no);
    end loop;
    -- Last, as others wait for it.
    perform number_kept();
end $$;
