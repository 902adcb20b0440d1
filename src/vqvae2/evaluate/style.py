"""How the pages of this package look: the style sheet, and the few lines of script that enlarge a picture."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c1e21;--soft:#5a6068;--line:#d9dce0;--panel:#f4f6f8;--accent:#0b57d0;
--good:#1a6b32;--c0:#0b62b8;--c1:#b5480a;--c2:#1d7a3c;--c3:#9c1f5c;--c4:#6b3fb5;--c5:#6a5500;
--c6:#00727a;--c7:#5a616b;--c8:#a81c1c}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--text:#e6e8eb;--soft:#a3aab3;--line:#3a3f46;--panel:#1f2327;
--accent:#8ab4f8;--good:#7fd197;--c0:#6cb2ff;--c1:#ffa366;--c2:#74d394;--c3:#ff8fc4;--c4:#bda0ff;--c5:#dcc35a;
--c6:#5fd0d8;--c7:#b4bac2;--c8:#ff8a80}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;margin:0;background:var(--page);color:var(--text)}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:.5rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.8rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line);scroll-margin-top:1rem}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.6rem 0;max-width:48rem;overflow-wrap:anywhere}
a{color:var(--accent)}
code{background:var(--panel);padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
nav{background:var(--panel);border-radius:8px;padding:.6rem 1rem;margin:1rem 0}
nav ul{margin:.2rem 0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
.verdict{border-left:5px solid var(--accent);background:var(--panel);border-radius:0 8px 8px 0;padding:.6rem 1.1rem;margin:1rem 0}
.verdict p:first-child{font-size:1.15rem;font-weight:600}
.note,.about,figcaption{color:var(--soft);font-size:.9rem}
.about{display:block;font-weight:400;max-width:34rem;min-width:13rem}
.better{color:var(--good);white-space:nowrap;font-size:.85rem;font-weight:400}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%}
th,td{border-bottom:1px solid var(--line);padding:.45rem .8rem;text-align:left;vertical-align:top}
thead th{color:var(--soft);font-weight:600}
td{font-variant-numeric:tabular-nums}
td.number{text-align:right;white-space:nowrap}
th.number{text-align:right}
tbody th{font-weight:600}
dl{max-width:48rem}dt{font-weight:600}dd{margin:0 0 .5rem;color:var(--soft)}
figure{margin:1.5rem 0}
.sheet{display:grid;grid-template-columns:max-content minmax(0,1fr);column-gap:.8rem;justify-items:start}
.rows{display:grid;grid-auto-rows:1fr;text-align:right;font-size:.85rem;line-height:1.15}
.rows span{align-self:center;max-width:9rem}
.zoom{border:0;padding:0;background:none;cursor:zoom-in;display:block;max-width:100%}
.zoom img,dialog img{image-rendering:pixelated;max-width:100%;height:auto;display:block}
dialog{border:0;padding:0;background:#000c;width:100vw;height:100vh;max-width:none;max-height:none;overflow:auto}
dialog img{max-width:none;margin:auto;cursor:zoom-out}
dialog[open]{display:grid;place-items:center}
dialog button{position:fixed;top:.6rem;right:.8rem;font-size:1rem;padding:.3rem .7rem}
svg{max-width:100%;height:auto;width:46rem;display:block}
svg text:not([fill]){fill:var(--text)}svg text.title{fill:var(--soft)}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--soft)}
@media (max-width:40rem){th,td{padding:.4rem .5rem}main{padding:.5rem .8rem 3rem}.rows span{max-width:4.6rem}
.rows{font-size:.7rem}.about{min-width:10rem}h1{font-size:1.35rem}}
@media print{nav,dialog{display:none}}
"""

ENLARGE = """
const box=document.querySelector('dialog'),large=box.querySelector('img');
for(const each of document.querySelectorAll('.zoom'))each.addEventListener('click',()=>{
const small=each.querySelector('img');large.src=small.src;large.alt=small.alt;
const times=Math.max(1,Math.floor(Math.min(innerWidth*.96/small.naturalWidth,innerHeight*.96/small.naturalHeight)));
large.width=Math.max(small.naturalWidth*times,Math.min(innerWidth*.96,small.naturalWidth*2));box.showModal()});
box.addEventListener('click',()=>box.close());
"""
"""A click on a picture shows it as large as the window allows, at a whole multiple of its size; a click or Escape closes it."""
