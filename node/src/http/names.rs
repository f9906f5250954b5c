//! Label names as URLs carry them: the `U__` value encoding of UTF-8 names.
//!
//! Source: Prometheus's `model.UnescapeName` with `ValueEncodingEscaping`: after the prefix `U__`, `__` stands
//! for `_`, and `_<hex>_` for the character of that number.

const PREFIX: &str = "U__";

/// The name that `escaped` stands for; a text that is no valid escape stands for itself.
pub(crate) fn unescape(escaped: &str) -> String {
    escaped.strip_prefix(PREFIX).and_then(unescape_body).unwrap_or_else(|| escaped.to_owned())
}

fn unescape_body(mut rest: &str) -> Option<String> {
    let mut name = String::new();
    while let Some(at) = rest.find('_') {
        name.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('_') {
            name.push('_');
            rest = after;
            continue;
        }
        let (digits, after) = rest.split_once('_')?;
        // The longest code point has six hexadecimal digits.
        if digits.is_empty() || digits.len() > 6 {
            return None;
        }
        name.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        rest = after;
    }
    name.push_str(rest);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes_what_prometheus_escapes() {
        assert_eq!(unescape("plain_name"), "plain_name");
        assert_eq!(unescape("U__http_2e_status"), "http.status");
        assert_eq!(unescape("U__a__b"), "a_b");
        assert_eq!(unescape("U__label_20_with_20_spaces"), "label with spaces");
        for broken in ["U__a_", "U__a_zz_", "U__a_d800_", "U__a_1234567_"] {
            assert_eq!(unescape(broken), broken);
        }
    }
}
