//! How the page looks: light and dark, on a desk and on a phone. Texts have a contrast of 4.5 at least (WCAG 2.2, 1.4.3).

pub(super) const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2024;--bg:#fff;--soft:#f3f4f6;--line:#d5d9de;--ok:#1a7f4b;--bad:#b3261e;--badbg:#fdecea;\
--warn:#8a5200;--edge:#e08a00;--warnbg:#fff3dc;--rec:#2f6fb3;--ref:#c0562b;--pass:#78828c;--dim:#56606b;--link:#1d5a99}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e8ea;--bg:#14171a;--soft:#1e2327;--line:#343b42;--ok:#5cc990;--bad:#ff8a80;\
--badbg:#361c1a;--warn:#f5bd62;--edge:#d9912a;--warnbg:#332710;--rec:#6aa9e9;--ref:#e88f66;--pass:#7f8994;--dim:#9fa9b4;--link:#8cbdf0}}\
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:68rem;\
margin:0 auto;padding:1rem}a{color:var(--link)}h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .4rem}\
h3{font-size:1rem;margin:1.1rem 0 .3rem}p{margin:.4rem 0}.dim{color:var(--dim)}.bad{color:var(--bad)}ul{padding:0;list-style:none;margin:.8rem 0}\
.bar{display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;align-items:end;margin:.8rem 0}.bar>p{flex-basis:100%}.bar label{display:flex;flex-direction:column;color:var(--dim)}.bar label b{color:var(--fg)}\
.bar form{display:flex;flex-wrap:wrap;gap:.4rem .8rem;align-items:end}.bar form[role=search]{flex:1 1 30rem}.bar form[role=search] label:first-child{flex:1 1 18rem}\
.alarm,.note{border:1px solid var(--edge);border-left-width:.4rem;background:var(--warnbg);border-radius:.3rem;padding:.5rem .8rem;\
margin:.7rem 0;overflow-wrap:anywhere}.alarm.down{border-color:var(--bad);background:var(--badbg)}.alarm h2{margin:0;font-size:1.05rem}\
.note.done{border-color:var(--ok);background:var(--soft)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.6rem}.tiles li{border:1px solid var(--line);\
border-top:.35rem solid var(--line);border-radius:.3rem;padding:.5rem .8rem}.tiles li.warn{border-color:var(--edge);background:var(--warnbg)}\
.tiles b{display:block;font-size:1.7rem;line-height:1.25;font-variant-numeric:tabular-nums}.tiles li.warn b{color:var(--warn)}.tiles span{display:block}\
.checks{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem}.checks li{overflow-wrap:anywhere}.checks b{color:var(--ok)}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;\
border-bottom:1px solid var(--line);vertical-align:top}th{font-weight:600;white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums}\
.do,.id,time{white-space:nowrap}.who{min-width:9rem}.who code{display:block;color:var(--dim)}.why{min-width:14rem;overflow-wrap:anywhere}\
code{font:.88em ui-monospace,monospace;white-space:nowrap}.long{display:block;overflow-x:auto}td>div,dd{unicode-bidi:isolate}form{display:inline}\
button,input,.button{font:inherit;color:inherit;background:var(--soft);border:1px solid var(--line);border-radius:.3rem;padding:.25rem .7rem}\
input{width:100%;color:var(--fg)}input[name=since]{width:7rem}button,.button{cursor:pointer;text-decoration:none;display:inline-block}button.bad,.button.bad{color:var(--bad)}\
:focus-visible{outline:3px solid var(--rec);outline-offset:2px}.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}\
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.25rem .9rem;margin:.6rem 0}dt{color:var(--dim)}dd{margin:0;overflow-x:auto}dd.why{overflow-wrap:anywhere}\
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--dim)}.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;\
width:.8em;height:.8em;border-radius:.15em;margin-right:.35em}footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:.5rem}\
.doc{max-width:50rem;overflow-wrap:break-word}.doc ul{list-style:disc;padding-left:1.4rem}.doc pre,.doc table{display:block;overflow-x:auto}\
.doc code{white-space:pre-wrap}.doc pre code{white-space:pre}.doc pre{background:var(--soft);padding:.6rem}.doc :target{background:var(--warnbg)}\
@media(max-width:44rem){body{padding:.7rem}.tiles{grid-template-columns:1fr 1fr}.tiles li{padding:.4rem .6rem}.tiles b{font-size:1.35rem}\
.wide{overflow:visible}.wide table,.wide tbody,.wide tr,.wide td{display:block;width:auto}.wide thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}\
.wide tr{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem;margin:.6rem 0}.wide td{border:0;padding:.1rem 0;display:flex;gap:.6rem;text-align:left;min-width:0}\
.wide td[data-l]:not([data-l=''])::before{content:attr(data-l);color:var(--dim);flex:0 0 6.2rem}.wide td>div{min-width:0;overflow-x:auto;overflow-wrap:anywhere}\
.wide td time{white-space:normal}.wide td.do{padding-bottom:.5rem}.wide td.do>div{width:100%;overflow:visible}button,input,.button{min-height:2.75rem;padding:.5rem 1rem}\
svg text{font-size:24px}}";
