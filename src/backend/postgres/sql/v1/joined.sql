-- Transactions of somebody else's: steps that take effect with what a caller does beside them, on a
-- connection that is the caller's.

-- Which bus this is: a client that is given a connection sees whether it leads to the same one.
create table identity (
    one boolean primary key default true check (one),
    id uuid not null default gen_random_uuid()
);
insert into identity default values;

-- Applies steps (o_*, as for `commit`) of a client without a registry; returns what `commit` says of
-- them. o_group names groups. Notifications go out with the caller's commit, and as nobody knows who
-- waits by then, they go out always.
create function apply_steps(
    p_dedup_window bigint, o_kind smallint[], o_id uuid[], o_name text[], o_body bytea[],
    o_key text[], o_unique text[], o_dedup text[], o_error text[], o_priority smallint[],
    o_n bigint[], o_group text[], o_binding integer[], o_outcome smallint[], o_after bigint[],
    o_due bigint[], o_ttl bigint[], o_notify text[], o_large uuid[], o_event uuid[]
) returns bigint[]
language plpgsql set search_path from current as $$
declare
    v_registry integer;
    v_keeps boolean;
    v_group integer[];
    v_first integer[];
    v_count integer[];
    v_step integer[];
    t_group integer[];
    t_binding integer[];
    v_limited integer[];
    v_lane_group integer[];
    v_lane_key text[];
    v_settled uuid[];
    v_touched integer[];
    v_results bigint[];
begin
    select array_agg(g.id order by s.n),
        array_agg(s.id order by s.n) filter (where s.kind = 1)
    into v_group, v_settled
    from unnest(o_kind, o_id, o_group) with ordinality as s (kind, id, name, n)
    left join groups g on g.name = s.name and not g.deleted;
    loop
        select r.version, r.kept_max > 0 into v_registry, v_keeps from registry r;
        with routed as (
            select s.n::integer as n, b.group_id, b.binding, s.key, g.max_length is not null as limited
            from unnest(o_kind, o_name, o_key) with ordinality as s (kind, name, key, n)
            join bindings b on b.bound
                and case when b.pattern then s.name ~ b.regex else b.text = s.name end
            join groups g on g.id = b.group_id and not g.deleted
            where s.kind = 0
        )
        select array_agg(r.n order by r.n, r.group_id, r.binding),
            array_agg(r.group_id order by r.n, r.group_id, r.binding),
            array_agg(r.binding order by r.n, r.group_id, r.binding),
            array_agg(distinct r.group_id) filter (where r.limited),
            array_agg(r.group_id order by r.group_id, r.key) filter (where r.key is not null),
            array_agg(r.key order by r.group_id, r.key) filter (where r.key is not null)
        into v_step, t_group, t_binding, v_limited, v_lane_group, v_lane_key
        from routed r;
        select array_agg(coalesce(t.first, 1) order by s.n), array_agg(coalesce(t.count, 0) order by s.n)
        into v_first, v_count
        from generate_subscripts(o_kind, 1) as s (n)
        left join (
            select u.n, min(u.place)::integer, count(*)::integer
            from unnest(v_step) with ordinality as u (n, place) group by u.n
        ) as t (n, first, count) on t.n = s.n;
        begin
            select c.results into v_results from commit(
                p_registry => case when 0 = any (o_kind) then v_registry end,
                p_dedup_window => p_dedup_window, p_limited => coalesce(v_limited, '{}'),
                l_group => coalesce(v_lane_group, '{}'), l_key => coalesce(v_lane_key, '{}'),
                s_id => coalesce(v_settled, '{}'), t_group => coalesce(t_group, '{}'),
                t_binding => coalesce(t_binding, '{}'),
                o_tx => array_fill(1, array[cardinality(o_kind)]), o_kind => o_kind, o_id => o_id,
                o_name => o_name, o_body => o_body, o_key => o_key, o_unique => o_unique,
                o_dedup => o_dedup, o_error => o_error, o_priority => o_priority, o_n => o_n,
                o_group => v_group, o_binding => o_binding, o_outcome => o_outcome,
                o_after => o_after, o_due => o_due, o_ttl => o_ttl, o_first => v_first,
                o_count => v_count, o_notify => o_notify, o_large => o_large,
                o_event => case when v_keeps then o_event else '{}' end) c;
            exit;
        exception when sqlstate 'EB001' then
            null; -- A group was declared just now: look again.
        end;
    end loop;
    if v_results[1] = 0 then
        select array_agg(distinct u.g) into v_touched
        from unnest(t_group || v_group) as u (g) where u.g is not null;
        if v_touched is not null then
            perform wake(v_touched);
        end if;
    end if;
    return v_results;
end $$;

-- Applies steps given as text: {"bus": …, "dedup_window": microseconds, "parts": whether notifications
-- only name broadcasts, "steps": [{"kind": …}, …]} with the fields of o_*, bodies in base64. Text, as every driver sends it as it is.
create function transact(p_parcel text) returns bigint[]
language plpgsql set search_path from current as $$
declare
    v_parcel jsonb := p_parcel;
begin
    if not exists (select 1 from identity i where i.id = (v_parcel ->> 'bus')::uuid) then
        raise exception 'database "%" holds another bus in schema "%"',
            current_database(), current_schema() using errcode = 'EB007';
    end if;
    if exists (select 1 from registry r where r.parts and not (v_parcel ->> 'parts')::boolean)
        and exists (
            select 1 from jsonb_array_elements(v_parcel -> 'steps') s (step)
            where s.step ->> 'notify' like 'b%'
        )
    then
        raise exception 'bodies of broadcasts go to a table now' using errcode = '40001';
    end if;
    return (
        select apply_steps((v_parcel ->> 'dedup_window')::bigint,
            array_agg(s.kind order by s.n), array_agg(s.id order by s.n),
            array_agg(s.name order by s.n), array_agg(decode(s.body, 'base64') order by s.n),
            array_agg(s.key order by s.n), array_agg(s."unique" order by s.n),
            array_agg(s.dedup order by s.n), array_agg(s.error order by s.n),
            array_agg(s.priority order by s.n), array_agg(s.number order by s.n),
            array_agg(s."group" order by s.n), array_agg(s.binding order by s.n),
            array_agg(s.outcome order by s.n), array_agg(s.after order by s.n),
            array_agg(s.due order by s.n), array_agg(s.ttl order by s.n),
            array_agg(s.notify order by s.n), array_agg(s.large order by s.n),
            array_agg(s.event order by s.n))
        from rows from (jsonb_to_recordset(v_parcel -> 'steps') as (
            kind smallint, id uuid, name text, body text, key text, "unique" text, dedup text,
            error text, priority smallint, number bigint, "group" text, binding integer,
            outcome smallint, after bigint, due bigint, ttl bigint, notify text, large uuid, event uuid
        )) with ordinality as s (kind, id, name, body, key, "unique", dedup, error, priority, number,
            "group", binding, outcome, after, due, ttl, notify, large, event, n)
    );
end $$;

-- Checks a name that a client gives: 1 to 255 bytes, and a topic without control characters.
create function check_name(p_what text, p_name text, p_plain boolean) returns void
language plpgsql set search_path from current as $$
begin
    if octet_length(p_name) not between 1 and 255 then
        raise exception 'invalid %: % bytes, must be 1-255', p_what, octet_length(p_name)
            using errcode = '22023';
    elsif p_plain and p_name ~ E'[\\u0001-\\u001f\\u007f-\\u009f]' then
        raise exception 'invalid % %: must not hold control characters', p_what,
            quote_literal(p_name) using errcode = '22023';
    end if;
end $$;

-- Publishes an event from any client, inside its own transaction: what is committed with it is
-- queued and heard with it. Returns the message's id.
create function publish(
    topic text, payload jsonb, key text default null, priority integer default 0,
    delay interval default null, expires_after interval default null,
    dedup_id text default null, unique_key text default null,
    event_type text default 'custom', source text default null,
    correlation_id text default null, metadata jsonb default '{}',
    dedup_window interval default '24 hours'
) returns uuid
language plpgsql set search_path from current as $$
#variable_conflict use_variable
declare
    v_id uuid := gen_random_uuid();
    v_large uuid;
    v_body bytea;
    v_notify text;
    v_results bigint[];
    v_name text;
begin
    if topic is null then
        raise exception 'invalid topic: must not be null' using errcode = '22004';
    end if;
    perform check_name('topic', topic, true);
    perform check_name('key', key, false);
    perform check_name('dedup_id', dedup_id, false);
    perform check_name('unique_key', unique_key, false);
    if event_type not in
        ('created', 'updated', 'deleted', 'activated', 'deactivated', 'error', 'custom')
    then
        raise exception 'invalid event_type %: must be created, updated, deleted, activated, '
            'deactivated, error or custom', quote_literal(event_type) using errcode = '22023';
    end if;
    if priority not between -32768 and 32767 then
        raise exception 'invalid priority %: must be from -32768 to 32767', priority
            using errcode = '22023';
    end if;
    v_body := convert_to(format(
        '{"type": %s, "topic": %s, "payload": %s, "timestamp": %s, "event_id": %s, "source": %s, '
            '"correlation_id": %s, "metadata": %s}',
        to_json(event_type), to_json(topic), coalesce(payload, 'null'),
        to_json(to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')),
        to_json(v_id), coalesce(to_json(source), 'null'), coalesce(to_json(correlation_id), 'null'),
        coalesce(metadata, '{}')), 'UTF8');
    if delay is null then
        v_notify := encode(int2send(octet_length(topic)::smallint) || convert_to(topic, 'UTF8'), 'hex');
        if (select r.parts from registry r) then
            v_large := gen_random_uuid();
            v_notify := '02' || encode(uuid_send(v_large), 'hex');
        elsif octet_length(v_body) <= 5000 then
            v_notify := '00' || v_notify || encode(int4send(octet_length(v_body)) || v_body, 'hex');
        else
            v_large := gen_random_uuid();
            v_notify := '01' || v_notify || encode(uuid_send(v_large), 'hex');
        end if;
        v_notify := format('b%s.%s.0:%s', repeat('0', 32), nextval('broadcasts'),
            translate(encode(decode(v_notify, 'hex'), 'base64'), E'\n', ''));
    end if;
    v_results := apply_steps((extract(epoch from dedup_window) * 1000000)::bigint,
        array[0::smallint], array[v_id], array[topic], array[v_body], array[key], array[unique_key],
        array[dedup_id], array[null::text], array[priority::smallint], array[null::bigint],
        array[null::text], array[null::integer], array[null::smallint],
        array[(extract(epoch from delay) * 1000000)::bigint], array[null::bigint],
        array[(extract(epoch from expires_after) * 1000000)::bigint], array[v_notify],
        array[v_large], array[case when delay is null then v_id end]);
    if v_results[1] = 4 then
        select g.name into v_name from groups g where g.id = v_results[3];
        raise exception 'group "%" is full: limit % messages', v_name, v_results[4]
            using errcode = 'EB004', detail = v_results[4]::text;
    end if;
    return v_id;
end $$;
