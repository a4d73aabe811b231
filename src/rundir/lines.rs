//! CSV files of a kept run: a header always, and a line for each row.

use std::io::Write;

use serde::Serialize;

/// Writes rows below the names of their fields, which stand there too when there are none.
pub fn write<T: Serialize + Default>(
    out: &mut impl Write,
    rows: impl Iterator<Item = T>,
) -> std::io::Result<()> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        let mut example = csv::Writer::from_writer(Vec::new());
        example.serialize(T::default())?;
        let example = example.into_inner().map_err(|e| e.into_error())?;
        let header = example.split_inclusive(|b| *b == b'\n').next();
        return out.write_all(header.unwrap_or_default());
    }
    let mut out = csv::Writer::from_writer(out);
    for row in rows {
        out.serialize(row)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Serialize)]
    struct Row {
        id: u64,
        outcome: String,
    }

    #[test]
    fn a_file_without_rows_has_its_header() {
        let written = |rows: Vec<Row>| {
            let mut out = Vec::new();
            write(&mut out, rows.into_iter()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(vec![]), "id,outcome\n");
        let row = Row {
            id: 1,
            outcome: "x".into(),
        };
        assert_eq!(written(vec![row]), "id,outcome\n1,x\n");
    }
}
