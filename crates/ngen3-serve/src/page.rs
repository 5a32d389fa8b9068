//! The page: one file without anything to load, joined from its parts.

/// The page as HTML.
pub(crate) const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>",
    include_str!("page/style.css"),
    "</style>",
    include_str!("page/body.html"),
    "<script>",
    include_str!("page/common.js"),
    include_str!("page/settings.js"),
    include_str!("page/tokens.js"),
    include_str!("page/chat.js"),
    include_str!("page/notebook.js"),
    include_str!("page/runs.js"),
    include_str!("page/start.js"),
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
