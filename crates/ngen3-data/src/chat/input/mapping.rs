//! Names that the user gives to roles and columns: `--roles` and `--columns`.

use crate::Error;
use crate::chat::conversation::Role;

/// Names of roles and columns beyond those that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatMapping {
    /// Role of each name that turns have as their speaker.
    roles: Vec<(String, Role)>,
    /// Columns that hold the turns, in order, with the role of each.
    columns: Vec<(String, Role)>,
}

impl ChatMapping {
    /// Parses `NAME=ROLE` pairs, of roles and of columns.
    ///
    /// # Errors
    /// [`Error::Input`] for a pair without `=`, an unknown role, or a name that comes twice.
    pub fn new(roles: &[String], columns: &[String]) -> Result<Self, Error> {
        Ok(Self { roles: pairs("--roles", roles)?, columns: pairs("--columns", columns)? })
    }

    /// Returns the role of a speaker's name; `None` for an unknown one.
    pub(super) fn role(&self, name: &str) -> Option<Role> {
        self.roles.iter().find(|(known, _)| known == name).map(|(_, role)| *role).or_else(|| Role::parse(name))
    }

    /// Columns that hold the turns, in order, with the role of each; empty unless the user gave them.
    pub(crate) fn columns(&self) -> &[(String, Role)] {
        &self.columns
    }
}

fn pairs(flag: &str, pairs: &[String]) -> Result<Vec<(String, Role)>, Error> {
    let mut found: Vec<(String, Role)> = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (name, role) = pair.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            Error::Input(format!("{flag}: expected NAME=ROLE pairs separated by commas, got {pair:?}"))
        })?;
        let role = Role::parse(role).ok_or_else(|| {
            Error::Input(format!("{flag}: unknown role {role:?}: expected system, user, assistant or tool"))
        })?;
        if found.iter().any(|(known, _)| known == name) {
            return Err(Error::Input(format!("{flag}: {name:?} is given twice")));
        }
        found.push((name.to_owned(), role));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_name_roles() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mapping = ChatMapping::new(&words("Narrator=system,user=assistant"), &words("q=user,a=assistant")).unwrap();
        assert_eq!(mapping.role("Narrator"), Some(Role::System));
        assert_eq!(mapping.role("user"), Some(Role::Assistant), "the user's own map comes first");
        assert_eq!((mapping.role("GPT"), mapping.role("critic")), (Some(Role::Assistant), None));
        assert_eq!(mapping.columns(), [("q".to_owned(), Role::User), ("a".to_owned(), Role::Assistant)]);
        for (pairs, reason) in [
            ("q", "--columns: expected NAME=ROLE pairs separated by commas, got \"q\""),
            ("=user", "--columns: expected NAME=ROLE pairs separated by commas, got \"=user\""),
            ("q=x", "--columns: unknown role \"x\": expected system, user, assistant or tool"),
            ("q=user,q=user", "--columns: \"q\" is given twice"),
        ] {
            assert_eq!(ChatMapping::new(&[], &words(pairs)).unwrap_err().to_string(), reason);
        }
    }
}
