//! The page: one file without anything to load, joined from its parts.

/// The page as HTML.
pub(crate) const PAGE: &str = concat!(
    include_str!("head.html"),
    "<style>",
    include_str!("style.css"),
    "</style>",
    include_str!("body.html"),
    "<script>",
    include_str!("common.js"),
    include_str!("settings.js"),
    include_str!("tokens.js"),
    include_str!("chat.js"),
    include_str!("notebook.js"),
    include_str!("runs.js"),
    include_str!("start.js"),
    "</script></body></html>",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing() {
        for loading in ["src=", "@import", "url(", "https://", "import("] {
            assert!(!PAGE.contains(loading), "{loading}");
        }
        // A script ends at the first of these.
        assert_eq!(PAGE.matches("</script").count(), 1);
    }
}
