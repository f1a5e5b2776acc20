package swarm

import (
	"fmt"
	"testing"
	"time"
	"os"
	"strconv"
	"maps"
	"slices"
)

func TestTrace(t *testing.T) {
	count := 100
	if c, err := strconv.Atoi(os.Getenv("COUNT")); err == nil { count = c }
	s := New(count)
	began := time.Now()
	c0 := cpu()
	if err := s.Start(s.Nodes...); err != nil { t.Fatal(err) }
	fmt.Println("started", time.Since(began))
	for time.Since(began) < 3*time.Minute {
		full, minr, minl, suml, sumr, zero := 0, count, count, 0, 0, 0
		for _, n := range s.Nodes {
			n.mu.Lock()
			recs := 0
			for _, q := range n.sequences { if q > 0 { recs++ } }
			if recs == count && n.living == count { full++ }
			minr, minl = min(minr, recs), min(minl, n.living)
			suml += n.living; sumr += recs
			if n.living == 1 { zero++ }
			n.mu.Unlock()
		}
		fmt.Printf("%6.2fs cpu %5.2f full %d records min %d avg %d alive min %d avg %d alone %d deaths %d\n", time.Since(began).Seconds(), (cpu()-c0).Seconds(), full, minr, sumr/count, minl, suml/count, zero, s.FalseDeaths())
		if full == count { break }
		time.Sleep(500*time.Millisecond)
	}
	sum := map[string]uint64{}
	for _, n := range s.Nodes {
		for k, c := range n.gossip.View().Counters { sum[k] += c }
	}
	for _, k := range slices.Sorted(maps.Keys(sum)) { fmt.Println(k, sum[k]) }
	fmt.Println("seed", s.Nodes[0].gossip.View().Counters)
	s.Stop()
}
