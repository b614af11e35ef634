//! Times against the stored answers of CPython.

use eventbus::codec::time::{parse_iso, write_iso};

use super::support::unescape;

#[test]
fn times_are_read_and_written_as_cpython_does() {
    let mut wrong = Vec::new();
    for line in include_str!("../golden/isoformat.tsv").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let text = unescape(fields[0]);
        let found = match parse_iso(text.as_bytes()) {
            None => "!".to_owned(),
            Some(time) => {
                let mut iso = Vec::new();
                write_iso(&mut iso, &time);
                let offset = time.offset_micros.map_or("-".to_owned(), |offset| offset.to_string());
                format!("{}\t{offset}\t{}", time.micros, String::from_utf8(iso).unwrap())
            }
        };
        if found != fields[1..].join("\t") {
            wrong.push(format!("{line} | {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
