//! Tables in Markdown, aligned so that they read well as text too, and numbers as people read them.

/// A table. Columns whose cells all start with a digit, empty ones apart, are aligned to the right.
pub fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let is_number = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()))
    };
    let columns: Vec<(usize, bool)> = (0..header.len()).map(|column| (width(column), is_number(column))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = "|".to_owned();
        for (cell, (width, right)) in cells.zip(&columns) {
            let gap = " ".repeat(width - cell.chars().count().min(*width));
            let (before, after) = if *right { (gap.as_str(), "") } else { ("", gap.as_str()) };
            line.extend([" ", before, cell, after, " |"]);
        }
        line + "\n"
    };
    let mut out = line(&mut header.iter().copied());
    out += "|";
    for (width, right) in &columns {
        out += &"-".repeat(width + 1);
        out += if *right { ":|" } else { "-|" };
    }
    out += "\n";
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

/// A count of bytes: `93.81 MiB`.
pub fn bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A count: `134.52 M`.
pub fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "K", "M", "G", "T"]).trim_end().to_owned()
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    if value < base {
        return format!("{value} {unit}");
    }
    while value >= base
        && let Some(next) = units.next()
    {
        value /= base;
        unit = next;
    }
    format!("{value:.2} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [
            vec!["pp512".to_owned(), "12.50 ± 1".to_owned()],
            vec!["tg".to_owned(), "9".to_owned()],
            vec!["all".to_owned(), String::new()],
        ];
        let expected = "\
| test  |       t/s |
|-------|----------:|
| pp512 | 12.50 ± 1 |
| tg    |         9 |
| all   |           |
";
        assert_eq!(markdown(&["test", "t/s"], &rows), expected);
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(98_362_432), "93.81 MiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(134_515_008), "134.52 M");
    }
}
