"""Bars of ratios as an SVG picture."""

from html import escape

WIDTH, LINE, LABEL = 860, 26, 330


def ratios(title: str, rows: list[tuple[str, float, str]]) -> str:
    """A bar for each row: what is compared, how many times as fast Lathe is, and the figures. A line marks 1."""
    most = max([1.5, *(ratio for _, ratio, _ in rows)])
    scale = (WIDTH - LABEL - 190) / most
    height = 60 + LINE * len(rows)
    font = 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {font}>',
        f'<rect width="100%" height="100%" fill="white"/><text x="12" y="24" font-size="15">{escape(title)}</text>',
    ]
    for index, (label, ratio, figures) in enumerate(rows):
        y = 44 + LINE * index
        colour = "#0072b2" if ratio >= 1 else "#d55e00"
        end = LABEL + ratio * scale
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{ratio * scale:.1f}" height="18" fill="{colour}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 13}">{ratio:.2f}× ({escape(figures)})</text>',
        ]
    parts.append(f'<path d="M{LABEL + scale:.1f} 36V{height - 12}" stroke="black" stroke-dasharray="4 3"/></svg>')
    return "\n".join(parts) + "\n"
