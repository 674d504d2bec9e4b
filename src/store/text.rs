//! Names in messages. A file may be called anything, and so may a class, a column or a prefix.

/// Text that stays on its line and gives no orders to a terminal or to whoever reads a log: control
/// characters as they are written in programs.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_line_or_colour_it_is_written_out() {
        assert_eq!(one_line("a\nb\r\u{1b}[31m\u{85}ü"), r"a\nb\r\u{1b}[31m\u{85}ü");
    }
}
