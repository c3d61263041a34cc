"""SQL that nobody may ask, that no parser should stumble over, that never ends, and that wants too much memory."""

from __future__ import annotations

HOSTILE = """
drop table t
drop view v
drop schema main cascade
truncate t
delete from t
delete from t where i = 1 returning i
update t set i = 0
insert into t values (1, 'a')
insert into t select * from t returning i
merge into t using (select 1 as i) u on t.i = u.i when matched then delete
alter table t rename to u
alter table t add column x integer
create table u as select 1
create temp table u (i integer)
create or replace view v as select 1
create schema u
create sequence u
create type u as enum ('a')
create macro f(x) as x
create temp macro f(x) as table select x
create index u on t (i)
create or replace persistent secret s (type http)
comment on table t is 'mine'
with gone as (delete from t returning i) select * from gone
with gone as (delete from t) select 1
with more as (insert into t values (1, 'a') returning i) select * from more
with other as (update t set i = 0 returning i) select count(*) from other
with file as (copy t to 'out.csv') select 1
with file as materialized (copy (select 1) to 'out.parquet' (format parquet)) from file
with a as (with b as (delete from t returning i) from b) from a
select * from (with gone as (delete from t returning i) from gone)
with low as (select 1) delete from t
from t; drop table t
select 1; select 2
select 1;; drop table t;
select 1 /* ; */ ; drop table t -- select
begin
begin; delete from t; commit
commit
rollback
prepare p as delete from t
execute p
deallocate p
explain select 1
explain delete from t
explain analyze delete from t
explain analyze copy t to 'out.csv'
explain analyze with gone as (delete from t) select 1
copy t to 'out.csv'
copy t to 'secret.csv'
copy t to '/dev/stdout'
copy (select 1) to 'out.parquet' (format parquet)
copy t from 'secret.csv'
copy from database memory to other
export database 'out'
import database 'out'
attach 'secret.db'
attach 'new.db' as other
attach ':memory:' as other
detach memory
use memory
install httpfs
force install spatial from 'https://example.com'
load httpfs
load 'secret.db'
set enable_external_access = true
set lock_configuration = false
set allowed_directories = ['/']
set memory_limit = '100GB'
set threads = 64
set variable x = 1
reset memory_limit
set session temp_directory = '.'
pragma table_info('t')
pragma enable_profiling
pragma database_list
pragma version
call pragma_version()
call range(3)
call enable_logging(storage = 'file', storage_path = 'out')
vacuum
vacuum analyze t
analyze
checkpoint
force checkpoint
from checkpoint()
from force_checkpoint()
from 'secret.csv'
from "latest"
from 'secret.db'
from '*.csv'
from '/etc/hostname'
from 'file:///etc/hostname'
from 'https://example.com/a.csv'
from 's3://bucket/a.parquet'
describe 'secret.csv'
summarize 'secret.csv'
select * from t join 'secret.csv' using (i)
select (select max(s) from 'secret.csv')
select * from read_csv('secret.csv')
select * from main.read_csv('secret.csv')
select * from system.main.read_csv_auto('secret.csv')
select * from "READ_TEXT"('/etc/hostname')
select * from read_blob('secret.db')
select * from read_json('secret.csv')
select * from read_ndjson_objects('secret.csv')
select * from read_parquet('secret.csv')
select * from parquet_metadata('secret.csv')
select * from read_duckdb('secret.db')
select * from sniff_csv('secret.csv')
select * from glob('*')
select * from glob('/etc/*')
from t, lateral (select * from read_text(s))
select (select content from read_text('/etc/hostname'))
with a as (from read_text('/etc/hostname')) from a
select 1 order by (select count(*) from glob('*'))
select 1 limit (select count(*) from glob('*'))
select count(*) filter (where exists (from glob('*'))) over () from t
from query('delete from t')
from query('from read_text(''/etc/hostname'')')
from query_table('secret.csv')
from json_execute_serialized_sql(json_serialize_sql('select 1'))
select json_serialize_plan('from read_text(''/etc/hostname'')')
select getenv('SECRET_TOKEN')
select list_transform(['SECRET_TOKEN'], lambda x: getenv(x))
select current_setting('secret_directory')
select 'secret_directory'.current_setting()
from duckdb_settings()
from pg_settings
from pg_catalog.pg_settings
from pragma_database_list
from duckdb_secrets()
from which_secret('a', 'http')
from duckdb_extensions()
from duckdb_logs
from duckdb_temporary_files()
from pragma_storage_info('t')
from enable_logging()
from enable_profiling(save_location = 'out')
from create_external_resource('a')
from pandas_scan(1)
from arrow_scan(1, 2, 3)
from seq_scan('t')
from histogram_values(t, i)
select write_log('a')
select nextval('t')
select __internal_decompress_string(1)
select * from question
select * from cursor
select * from pd.DataFrame
select * from st_read('secret.csv')
pivot t on s using sum(i)
select $undefined
select ?
select
selec\u0442 1
\u0455elect 1
\uff24\uff32\uff2f\uff30 table t
dr\u200bop table t
\u202edrop table t
select 1\uff1b drop table t
drop\u00a0table\u3000t
  \t\v\f  drop /* select */ table -- select
-- select\rdrop table t
/* select 1 */ drop table t
/* /* select */ */ drop table t
--
;;;
select '
select "
select /* never closed
""".strip("\n").split("\n")

CRAFTED = {
    "a NUL": "select 1\0; drop table t",
    "half a surrogate": "select '\udfff'",
    "line breaks": "\r\n\r\n drop \r table \n t \r\n",
    "nothing at all": "",
    "a long statement": "select '" + "x" * 60_000 + "'",
    "a long name": "select " + "x" * 40_000,
    "many brackets": "select " + "(" * 20_000 + "1" + ")" * 20_000,
    "brackets that stay open": "select " + "(" * 40_000,
    "a long sum": "select " + "1+" * 20_000 + "1",
    "deep lists": "select " + "[" * 400 + "1" + "]" * 400,
    "deep subqueries": "select " + "(select " * 300 + "1" + ")" * 300,
    "deep unions": "select 1 " + "union select 1 " * 3000,
    "a long IN list": "select i from t where i in (" + "1," * 30_000 + "1)",
    "many joins": "select * from t" + " natural join t" * 2000,
    "lists that are too large": "select list_aggregate(range(10000000000), 'sum')",
}

ENDLESS = [
    "with recursive n as (select 1 as x union all select x + 1 from n) select count(*) from n",
    "with recursive n as (select 1 as x union all select x + 1 from n) from n where x < 0",
    "select sum(a.range * b.range) from range(100000) a, range(10000000) b",
    "select count(*) from t a, t b, t c, t d where a.i * b.i = c.i * d.i + 7",
    "select count(*) from range(1000000000000)",
    "select sleep_ms(60000)",
    "select levenshtein(repeat('a', 50000), repeat('b', 50000))",
    "from range(1000000000000) where range < 0",
]
GREEDY = [
    "select count(*) from range(1000000000) a, range(1000000000) b",
    "select repeat('x', 2000000000)",
    "select length(repeat('x', 2000000000))",
    "select list_aggregate(range(100000000), 'sum')",
    "select list(range) from range(300000000)",
    "select string_agg(s || range, '') from t, range(1000000)",
    "select printf('%2000000000d', 1)",
    "select array_agg(x) from (select repeat('y', 100000000) as x from range(50))",
    "from range(1000000000) order by hash(range)",
]
