package swarm

import (
	"context"
	"testing"

	"github.com/meshd/meshd/internal/gossip"
)

func BenchmarkView1000(b *testing.B) {
	s := New(1000)
	var all gossip.Remembered
	for _, n := range s.Nodes[1:] {
		g, err := gossip.Start(context.Background(), gossip.Options{Identity: n.identity, Cluster: s.cluster, Secrets: [][32]byte{{1}}, Boot: 1, Instance: 1, Bind: "127.0.0.1:0"})
		if err != nil { b.Fatal(err) }
		n.gossip = g
		if _, err := n.Publish(); err != nil { b.Fatal(err) }
		r := g.Remember()
		all.Objects = append(all.Objects, r.Objects...)
		all.Highest = append(all.Highest, r.Highest...)
		g.Stop()
	}
	g, err := gossip.Start(context.Background(), gossip.Options{Identity: s.Nodes[0].identity, Cluster: s.cluster, Secrets: [][32]byte{{1}}, Boot: 1, Instance: 1, Bind: "127.0.0.1:0", Remembered: all})
	if err != nil { b.Fatal(err) }
	s.Nodes[0].gossip = g
	b.ReportAllocs()
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if v := g.View(); len(v.Records) != 999 { b.Fatal(len(v.Records)) }
		}
	})
	b.Run("turn", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() { s.Nodes[0].turn() }
	})
	b.Run("remember", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() { g.Remember() }
	})
	g.Stop()
}
