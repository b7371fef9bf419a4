"""A finished study as one HTML file that needs no script, no other file and no network."""

from .page import CONTENT_SECURITY_POLICY, report_page

__all__ = ["CONTENT_SECURITY_POLICY", "report_page"]
