r"""Golds of every kind, and claims: answers that name a gold without having solved its problem.

    claims()  ->  ("34", "17+17"), ("34", r"\frac{68}{2}"), ("34", r"34 \approx 35"), ("(3,2)", r"\emptyset"), ...

A claim is made of the gold's own numbers, so that a rule which takes a part for the whole calls it right. It is
undone arithmetic, several candidates, a part, a weaker statement, another kind of thing, or no answer at all.

`KINDS` holds a kind in two parts: `=` its golds, `-` the claims on each of them. In «», `g` is the gold, `n` its
value if it is a whole number, `p` its parts without brackets, `l` and `r` the sides of its equation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

KINDS = r"""
whole
= 0 ;; 1 ;; 2 ;; 5 ;; 12 ;; 34 ;; 72 ;; 100 ;; 144 ;; 289 ;; 360 ;; 1024 ;; 1729 ;; -3 ;; -7 ;; -18 ;; 308228 ;;
  1{,}000 ;; 12,345
- «n - 17»+17 ;; «n + 17»-17 ;; «n»\cdot 1 ;; \frac{«3*n»}{3} ;; «7*n» \div 7 ;; «7*n»/7 ;; \gcd(«n», «2*n») ;;
  («n»)(1) ;; \lfloor «n».5 \rfloor ;; «n»^1 ;; |«n»|+0 ;; «n + 49» \bmod 49 ;; «n»:1:1 ;; \log_{2} 2^{«n»} ;;
  \ln e^{«n»} ;; \sqrt[3]{«n**3»} ;; \sum_{k=1}^{1} «n» ;; «n» squared ;; «n» factorial ;; «n» plus 3 ;;
  «n» or more ;;
  at least «n» ;; \max(«n», «n - 1») ;; «2*n»:2 ;; «n»\sin^2 x + «n»\cos^2 x ;; «n» times two ;; «n»i^4 ;; 0=0 ;;
  \sqrt{«n*n»}+0 ;; «n»\sqrt{4}/2 ;; (-«n»)(-1) ;; \binom{«n»}{1} ;; «n» to «n + 2» ;; «n» thirds ;; «n»=«n» ;;
  («g»)^2/(«g») ;; «n» cubed ;; 1\cdot «n» ;; «n»e^0 ;; «n»+i^2+1 ;; \cosh^{-1}\cosh «n»
number
= «whole» ;; \frac{1}{2} ;; \frac{2}{3} ;; -\frac{3}{4} ;; \frac{5}{6} ;; \frac{7}{128} ;; 3/8 ;; \frac{50}{3} ;;
  0.5 ;;
  3.14 ;; 2.75 ;; -0.125 ;; 18.90 ;; \sqrt{2} ;; 2\sqrt{3} ;; \frac{\sqrt{3}}{2} ;; 3+2\sqrt{5} ;;
  \frac{1+\sqrt{5}}{2} ;; 5\sqrt[3]{4} ;; \pi ;; 12\pi ;; \frac{\pi}{6} ;; 16-4\pi ;; e^2 ;; \frac{2\pi}{3}
- «g», «g»+1 ;; «g» \approx «g»+1 ;; «g» \text{ or } «g»1 ;; \{«g», 77\} ;; x > «g» ;; «g» \neq 77 ;; «g» < 99 ;;
  x \approx «g»+x ;; [«g», 99] ;; 77 \approx «g» ;; «g» = 77 ;; 77 = «g» ;; «g» \pm 1 ;; «g»+x ;; («g», 77) ;;
  \text{not } «g» ;; «g» + 0 ;; «g» \to 77 ;; «g»;77 ;; \sin(\arcsin(«g»)) ;; («g»)^0(«g»)+0 ;; |«g»|+0 ;;
  \text{about }«g»\text{ or }77
complex
= 3+4i ;; -i ;; \frac{1+i\sqrt{3}}{2} ;; 7-2i
- i(«g»)/i ;; («g»)^2/(«g») ;; «g», -«g» ;; |«g»| ;; (1+i)(«g»)/(1+i) ;; «g»+0 ;; \overline{«g»}
quantity
= 5\text{ cm} ;; 60^\circ ;; \$18 ;; 25\% ;; 15\text{ days} ;; 12\text{ m}^2
- «p[0]»+0 ;; «p[0]» \text{ kg} ;; «p[0]»^2 ;; «p[0]», 77 ;; \sqrt{«p[0]»} ;; «p[0]» squared ;; 77 \approx «p[0]»
pairs
= (3,2) ;; (1,-4) ;; (\frac{1}{2},3) ;; (0,5) ;; (2,3,5) ;; (-1,0,4) ;; (\sqrt{2},-1) ;; (1,10),(10,1) ;;
  (2,3),(4,7) ;;
  (3,0),(-3,1) ;; (1,1),(3,2) ;; (6,3),(9,3),(9,5)
- «p[0]» ;; «g»,(0,0) ;; «p[0]»<x<11 ;; «p[0]»<x ;; x \neq 2 ;; (a,b) ;; («p[0]»,y) ;; x=«p[0]» ;;
  («p[0]»,«p[-1]»,1) ;;
  \{«p[0]»,«p[-1]»\} ;; 1<x<10 ;; «g» \text{ or } (9,9) ;; \emptyset ;; no solution ;; («p[0]»+0,«p[-1]»)
lists
= 1,2 ;; -3,4 ;; 2,3,5 ;; 1+\sqrt{2},1-\sqrt{2} ;; \frac{1}{2},3 ;; \{1,2\} ;; \{2,4,8\} ;; \{-1,0,1\}
- «p[0]» ;; «g»,77 ;; «p[-1]»+x ;; x>«p[0]» ;; [«p[0]»,«p[-1]»1] ;; \{x : x > «p[0]»\} ;; («p[0]»,\infty) ;;
  x_1, x_2 ;;
  «p[0]»,«p[0]» ;; \{«p[0]»,x\} ;; «p[0]» \pm «p[-1]»+77 ;; «g»,\ldots
regions
= [1,5) ;; (-\infty,3) ;; (-\infty,1]\cup\{3\} ;; [0,1]\cup[2,3] ;; x>3 ;; 1<x<4 ;; x\neq 2 ;; x\ge -1
- x>0 ;; y>4 ;; x ;; 3 ;; \{3\} ;; (-1,1) ;; x \in S ;; -100<x<100 ;; x>0 \text{ or } x<0 ;; (4,1) ;; [3,3)
plane
= x>0, y>0 ;; a<2, b<3 ;; x>1, y<4
- x>0 ;; y>0 ;; a<2 ;; b<3 ;; x>1 ;; y<4 ;; x>0 \text{ or } y>0 ;; (0,\infty) ;; x+y>0 ;; a<b ;; 0<x<y ;;
  \mathbb{R}
equations
= x+y+z=0 ;; x^2+y^2=13 ;; 2x-y+2z-18=0 ;; xy=12 ;; x-3z=0 ;; 0=x-y
- «l» ;; «r» ;; «l»=«l» ;; «r»=«r» ;; 0(«l»)=0 ;; «l»=c ;; «l»=«r»+1 ;; 0 ;; 13 ;; 12 ;; «l»>«r» ;; («l»)(«r»)=x
functions
= y=2x+3 ;; f(x)=2x ;; f(n)=n^2+1 ;; g(x)=\frac{1}{x} ;; f^{-1}(x)=\ln x
- «l» ;; «l»=«l» ;; «r»=«r» ;; «l»=c ;; «l»=«r»+1 ;; «l»=«r», «l»=0 ;; h(x)=«r» ;; «l»=ax+b ;; f ;; «r»+C
expressions
= x^2+1 ;; 2n-1 ;; \frac{x+1}{x-1} ;; 3a+2b ;; \lfloor x\rfloor ;; x ;; \ln x ;; \frac{1}{\cosh x}
- «g»+C ;; «g», 0 ;; y=«g»+k ;; |«g»|-1 ;; f(«g») ;; «g»=0 ;; «g» \approx 3 ;; 2 ;; \cosh^{-1} x ;;
  \lceil x\rceil ;;
  «g» \text{ or } 3 ;; («g»)^{-1}+x ;; \lfloor x+1\rfloor ;; \sum_{k=1}^{n} k
matrices
= \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ;; \begin{pmatrix} 1 \\ 0 \end{pmatrix}
- 1,2,3,4 ;; \begin{pmatrix} a & b \\ c & d \end{pmatrix} ;; 1 ;; «g»^{-1} ;; 2«g» ;;
  \begin{pmatrix} 1 \end{pmatrix} ;;
  \begin{pmatrix} 1 & 1+1 \\ 3 & 4 \end{pmatrix} ;; (1,0) \text{ or } 0
letters
= A ;; C ;; \text{(B)} ;; \text{CBAD} ;; A, C
- A or B ;; (A)(B) ;; B or C ;; A, B, C, D, E ;; ABCDE ;; \text{not A} ;; A, B ;; C, D ;; \text{A and B} ;; A or C
words
= \text{Yes} ;; \text{odd} ;; \text{Monday} ;; \text{ellipse} ;; no solution ;; \text{Evelyn}
- not «g» ;; «g» or not ;; «g»/other ;; «g» or no ;; «g» and more ;; Yes/No ;; yes or no ;; odd or even ;; any day
others
= 4:30\text{ p.m.} ;; 1011_2 ;; 3:4 ;; \text{May 4}
- 4:30 ;; 4:30 a.m. ;; 1011 ;; 1011_3 ;; 3:4:5 ;; 4:3 ;; 3,4 ;; May ;; 4 June ;; 16:30 or 4:30 ;; 1011_2 or 3
anything
= «*»
- ? ;; n ;; a_1 ;; answer ;; \text{the answer} ;; \text{see above} ;; \text{unknown} ;; \infty ;; \mathbb{R} ;;
  x=x ;;
  all real numbers ;; (-\infty,\infty) ;; 0=0 ;; \cdots ;; \text{A, B, C, D} ;; \{x : x = x\} ;; 1=1 ;; f(x) ;;
  () ;;
  \text{True} ;; \text{solve for } x ;; \sum_{k=1}^{n} k ;; \lim_{x\to 0} x ;; \int_0^1 x\,dx ;; p=q ;;
  \{\} and more
"""


def claims() -> Iterator[tuple[str, str]]:
    """Yield (gold, claim) for every kind."""
    golds: dict[str, list[str]] = {}
    for kind, gold_text, claim_text in re.findall(
        r"^(\w+)\n= (.*?)\n- (.*?)(?=\n\w+\n=|\Z)", KINDS.strip(), re.S | re.M
    ):
        known = {"«whole»": golds.get("whole", []), "«*»": [gold for some in golds.values() for gold in some]}
        golds[kind] = [gold for item in _items(gold_text) for gold in known.get(item, [item])]
        for gold in golds[kind]:
            values = _values(gold)
            yield from ((gold, filled(claim, values)) for claim in _items(claim_text))


def filled(template: str, values: dict[str, Any]) -> str:
    """Put the parts of a gold into a template."""
    return re.sub("«(.*?)»", lambda found: str(eval(found[1], values)), template)


def _items(text: str) -> list[str]:
    return re.split(r"\s+;;\s+", text)


def _values(gold: str) -> dict[str, Any]:
    digits = gold.replace("{,}", "").replace(",", "")
    parts = re.findall(r"\d+", gold)[:1] if "text" in gold or gold[-1] in "%c" or "\\$" in gold else []
    left, _, right = gold.partition("=")
    return {
        "g": gold,
        "n": int(digits) if re.fullmatch(r"-?\d+", digits) else 0,
        "p": parts or re.sub(r"\\[{}]|^[\[(]|[\])]$", "", gold).replace("),(", ",").split(","),
        "l": left,
        "r": right,
    }
