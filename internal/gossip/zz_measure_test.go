package gossip
import ("testing";"time")
func TestMeasure8(t *testing.T){
 s:=time.Now(); nodes:=startCluster(t,8); t.Log("converged 8:",time.Since(s))
 for i:=0;i<2;i++{ s=time.Now(); nodes[3].publish(uint64(10+i)); eventually(t,"u",nodes,func(v View)bool{return sequenceOf(v,nodes[3].self)==uint64(10+i)}); t.Log("update:",time.Since(s))}
 time.Sleep(5*time.Second)
 dead:=nodes[5]; // kill: no leave
 s=time.Now(); dead.stop(); rest:=append(append([]*testNode{},nodes[:5]...),nodes[6:]...)
 eventually(t,"d",rest,func(v View)bool{return !v.Alive[dead.self]}); t.Log("death noticed:",time.Since(s))
 again:=startNode(t,5,func(o *Options){joining(nodes[0])(o);o.Boot=2})
 s=time.Now(); again.publish(50)
 all:=append(rest,again)
 eventually(t,"b",all,func(v View)bool{return v.Alive[dead.self]&&sequenceOf(v,dead.self)==50}); t.Log("back:",time.Since(s))
 for _,n:=range all{t.Log(n.View().Counters)}
}
func TestMeasure30(t *testing.T){
 s:=time.Now(); nodes:=startCluster(t,30); t.Log("converged 30:",time.Since(s))
 c0:=nodes[4].transport.counter.Load(); s=time.Now(); time.Sleep(10*time.Second)
 t.Log("idle packets/s:", float64(nodes[4].transport.counter.Load()-c0)/time.Since(s).Seconds())
 s=time.Now(); nodes[3].publish(99); eventually(t,"u",nodes,func(v View)bool{return sequenceOf(v,nodes[3].self)==99}); t.Log("update:",time.Since(s))
 l,r:=nodes[:15],nodes[15:]
 for _,n:=range l{n.block(r...)}; for _,n:=range r{n.block(l...)}
 s=time.Now(); eventually(t,"split",nodes,func(v View)bool{return len(v.Alive)==15}); t.Log("split noticed:",time.Since(s))
 for _,n:=range nodes{n.block()}
 s=time.Now(); eventually(t,"heal",nodes,func(v View)bool{return len(v.Alive)==30}); t.Log("healed:",time.Since(s))
 for _,n:=range nodes[:2]{t.Log(n.View().Counters, n.View().Problems)}
}
