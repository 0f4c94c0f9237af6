"""Operators, and the permissions of their roles."""

from collections.abc import Collection
from dataclasses import dataclass

from proxy.admin.problem import Problem
from proxy.config.admin_table import Role

EVERYBODY: frozenset[Role] = frozenset({"owner", "team_admin", "viewer"})
MANAGERS: frozenset[Role] = frozenset({"owner", "team_admin"})
OWNERS: frozenset[Role] = frozenset({"owner"})


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who is signed in, or a program with a key. One with a `team` sees nothing of others."""

    name: str
    role: Role
    team: str = ""

    def sees(self, team: str) -> bool:
        """Return whether the operator may see a team."""
        return not self.team or team == self.team

    def check(self, roles: Collection[Role], *, is_global: bool) -> None:
        """Raises Problem if the role is not among these, or what is global is for another team too."""
        if self.role not in roles:
            raise Problem(403, "role_not_allowed", f"This needs the role {' or '.join(sorted(roles))}.")
        if is_global and self.team:
            raise Problem(403, "team_not_allowed", "This concerns all teams, and you see one.")

    def check_team(self, team: str) -> None:
        """Raises Problem for another team than one's own."""
        if not self.sees(team):
            raise Problem(403, "team_not_allowed", f"You may do this for the team '{self.team}' only.")


LOCAL = Operator("local", "owner")
"""Everyone on this machine, where no keys are configured."""
