package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"runtime"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A look tells a series from the others by colour (of Okabe and Ito's palette, which the colour-blind can tell apart),
// by the shape of its points, and by its line.
type look struct {
	colour color.Color
	shape  draw.GlyphDrawer
	dashes []vg.Length
}

var (
	bareLook   = look{color.RGBA{R: 0x60, G: 0x60, B: 0x60, A: 0xff}, draw.CircleGlyph{}, []vg.Length{vg.Points(4), vg.Points(3)}}
	logLook    = look{color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}, draw.BoxGlyph{}, nil}
	peerLook   = look{color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}, draw.RingGlyph{}, []vg.Length{vg.Points(1), vg.Points(2)}}
	engineLook = look{color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}, draw.PyramidGlyph{}, nil}
)

// A series is a line through medians, with a bar from the lowest to the highest round at each.
type series struct {
	name string
	look look
	bare bool // a line alone, for series of many points
	x    []float64
	y    []figure
}

// series is what the plotters take.

func (s *series) Len() int                { return len(s.x) }
func (s *series) XY(i int) (x, y float64) { return s.x[i], s.y[i].median }
func (s *series) YError(i int) (low, high float64) {
	return s.y[i].median - s.y[i].low, s.y[i].high - s.y[i].median
}

// A panel is one diagram with its title and its legend above it, where they cover nothing. Both axes are logarithmic, or
// linear from nought.
type panel struct {
	title, x, y  string
	xTick, yTick func(float64) string
	binary       bool // x goes by powers of two, not of ten
	linear       bool
	series       []*series
}

func drawAppend(path string, s settings, points []appendPoint) error {
	rate := panel{title: "Durable events a second", x: "callers, each with one append under way", y: "events a second",
		xTick: plain, yTick: thousands, binary: true}
	latency := panel{title: "p99 latency of one event", x: rate.x, y: "latency (µs, ms)", xTick: plain, yTick: duration, binary: true}
	for _, look := range []struct {
		of, name string
		look     look
	}{
		{"bare", "bare loop: all lines in one write and sync", bareLook},
		{"log", "wal.Log", logLook},
		{"engine", "recovery.Engine, whole jobs", engineLook},
		{"bbolt", "bbolt, DB.Batch", peerLook},
	} {
		rates, latencies := &series{name: look.name, look: look.look}, &series{name: look.name, look: look.look}
		for _, p := range points {
			if p.contender == look.of {
				rates.add(float64(p.callers), p.rate)
				latencies.add(float64(p.callers), p.p99.times(1e-6))
			}
		}
		rate.series, latency.series = append(rate.series, rates), append(latency.series, latencies)
	}
	return drawPanels(path, s.foot(), rate, latency)
}

func drawReplay(path string, s settings, points []replayPoint) error {
	wait := panel{title: "Time to replay, page cache warm", x: "events in the log", y: "time (µs, ms, s)", xTick: thousands, yTick: duration}
	heap := panel{title: "Heap of an engine that is ready", x: wait.x, y: "bytes (kB, MB, GB)", xTick: thousands, yTick: bytesOf}
	bare, log := &series{name: "bare loop: read, CRC-32C", look: bareLook}, &series{name: "wal.Log: every event", look: logLook}
	engine := &series{name: "recovery.Engine: open, ready", look: engineLook}
	size, held := &series{name: "log on disk", look: bareLook}, &series{name: "recovery.Engine, 4 events a job", look: engineLook}
	for _, p := range points {
		x := float64(p.events)
		bare.add(x, p.bare.times(1e-3))
		log.add(x, p.log.times(1e-3))
		engine.add(x, p.engine.times(1e-3))
		size.add(x, figure{p.logSize, p.logSize, p.logSize})
		held.addIf(p.heap.low > 0, x, p.heap) // a small log: others may have let go of more meanwhile
	}
	wait.series, heap.series = []*series{bare, log, engine}, []*series{size, held}
	return drawPanels(path, s.foot(), wait, heap)
}

func (s *series) add(x float64, y figure) { s.x, s.y = append(s.x, x), append(s.y, y) }

func (f figure) times(k float64) figure { return figure{f.low * k, f.median * k, f.high * k} }

// foot says what was measured, and on what.
func (s settings) foot() string {
	return fmt.Sprintf("%s on %s/%s, %d CPUs; events of %d bytes; medians of %d rounds, bars from the lowest to the highest",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), lineBytes, s.rounds)
}

// drawPanels draws the panels, two side by side, and below them what they were measured on.
func drawPanels(path, foot string, panels ...panel) error {
	rows, head := (len(panels)+1)/2, headHeight(panels)
	const width, bodyHeight, footHeight = 860, 280, 30
	height := vg.Length(rows)*(head+bodyHeight) + footHeight
	svg := vgsvg.New(width, height)
	canvas := draw.New(svg)
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	tiles := draw.Tiles{Cols: 2, Rows: rows, PadX: 24, PadY: 14, PadTop: 10, PadLeft: 8, PadRight: 8}
	for i, p := range panels {
		if err := p.draw(tiles.At(draw.Crop(canvas, 0, 0, footHeight, 0), i%2, i/2), head); err != nil {
			return err
		}
	}
	style := textStyle(11)
	style.Color, style.XAlign, style.YAlign = color.Gray{Y: 0x50}, text.XCenter, text.YBottom
	canvas.FillText(style, vg.Point{X: width / 2, Y: 6}, foot)
	return writeSVG(path, svg)
}

// writeSVG names fonts of the same widths for those who do not have Liberation Sans, which is what the text was set for.
func writeSVG(path string, svg *vgsvg.Canvas) error {
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return err
	}
	fonts := []byte("font-family:'Liberation Sans',Arial,Helvetica,sans-serif")
	return os.WriteFile(path, bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), fonts), 0o666)
}

func textStyle(size vg.Length) text.Style {
	style := plot.New().X.Label.TextStyle
	style.Font.Size, style.Font.Variant = size, "Sans"
	return style
}

// The head of a panel is a title and a legend. Left of the diagram and below it are its labels.
const titleHeight, lineHeight, labelHeight = 24, 16, 16

// headHeight is that of all the panels of a picture: what the longest legend takes.
func headHeight(panels []panel) vg.Length {
	lines := 0
	for _, p := range panels {
		lines = max(lines, len(p.series))
	}
	return titleHeight + vg.Length(lines)*lineHeight + 8
}

func (p panel) draw(c draw.Canvas, head vg.Length) error {
	d, legend := plot.New(), plot.NewLegend()
	for _, style := range []*text.Style{&d.X.Tick.Label, &d.Y.Tick.Label, &legend.TextStyle} {
		style.Font.Size, style.Font.Variant = 11, "Sans"
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{Y: 0xdc}, color.Gray{Y: 0xdc}
	d.Add(grid)
	for _, s := range p.series {
		if err := s.addTo(d, &legend); err != nil {
			return err
		}
	}
	p.axes(d)
	body := draw.Crop(c, labelHeight, 0, labelHeight-4, -head)
	d.Draw(body)
	data := d.DataCanvas(body)
	p.labels(c, data.Center())

	title := textStyle(14)
	title.XAlign, title.YAlign = text.XLeft, text.YTop
	c.FillText(title, vg.Point{X: c.Min.X + 4, Y: c.Max.Y}, p.title)
	legend.Left, legend.Top, legend.Padding, legend.ThumbnailWidth = true, true, 3, 28
	legend.XOffs = 4
	legend.Draw(draw.Crop(c, 0, 0, 0, -titleHeight))
	return nil
}

// labels writes what the axes are. The library, which takes the middle of a logarithmic axis to be where half its largest
// value is, would leave room for half a label beyond the end of the axis.
func (p panel) labels(c draw.Canvas, middle vg.Point) {
	x, y := textStyle(11), textStyle(11)
	x.XAlign, x.YAlign = text.XCenter, text.YBottom
	c.FillText(x, vg.Point{X: middle.X, Y: c.Min.Y}, p.x)
	y.XAlign, y.YAlign, y.Rotation = text.XCenter, text.YTop, math.Pi/2
	c.FillText(y, vg.Point{X: c.Min.X, Y: middle.Y}, p.y)
}

func (s *series) addTo(d *plot.Plot, legend *plot.Legend) error {
	line, points, err := plotter.NewLinePoints(s)
	if err != nil {
		return err
	}
	line.Color, line.Width, line.Dashes = s.look.colour, 1.6, s.look.dashes
	if s.bare {
		d.Add(line)
		legend.Add(s.name, line)
		return nil
	}
	bars, err := plotter.NewYErrorBars(s)
	if err != nil {
		return err
	}
	points.Color, points.Shape, points.Radius = s.look.colour, s.look.shape, 3.2
	bars.Color, bars.Width, bars.CapWidth = s.look.colour, 0.8, 5
	d.Add(bars, line, points)
	legend.Add(s.name, line, points)
	return nil
}

// axes widens the ranges to whole steps, so that there is a label at both ends of each axis.
func (p panel) axes(d *plot.Plot) {
	if p.linear {
		linear(&d.X, p.xTick)
		linear(&d.Y, p.yTick)
		return
	}
	d.X.Scale, d.Y.Scale = plot.LogScale{}, plot.LogScale{}
	steps := []float64{1}
	if p.binary {
		d.X.Tick.Marker, d.X.Max = binaryTicks(p.xTick), max(d.X.Max, 2*d.X.Min)
	} else {
		d.X.Min, d.X.Max = outward(d.X.Min, d.X.Max, steps)
		d.X.Tick.Marker = decimalTicks(p.xTick, steps)
	}
	if d.Y.Max/d.Y.Min < 1e4 {
		steps = []float64{1, 2, 5}
	}
	d.Y.Min, d.Y.Max = outward(d.Y.Min, d.Y.Max, steps)
	d.Y.Tick.Marker = decimalTicks(p.yTick, steps)
}

// linear makes an axis go from nought to a whole step, or to what lies beyond it by less than two thousandths.
func linear(axis *plot.Axis, label func(float64) string) {
	step := stepOf(axis.Max)
	axis.Min, axis.Max = 0, max(axis.Max, step*math.Ceil(axis.Max/step*0.998))
	var ticks plot.ConstantTicks
	for i := 0.0; i*step <= axis.Max*1.0001; i++ {
		ticks = append(ticks, plot.Tick{Value: i * step, Label: label(i * step)})
	}
	axis.Tick.Marker = ticks
}

// stepOf returns the smallest of 1, 2, 5, 10, 20, … and of their tenths and hundredths, that goes into most no more than
// six times.
func stepOf(most float64) float64 {
	for _, step := range ladder(most/1000, most, []float64{1, 2, 5}) {
		if step*6 >= most {
			return step
		}
	}
	return 1
}

// outward goes to the next step of a decade on either side.
func outward(low, high float64, steps []float64) (float64, float64) {
	ticks := ladder(low/10, high*10, steps)
	newLow, newHigh := ticks[0], ticks[len(ticks)-1]
	for _, t := range ticks {
		if t <= low*1.0001 {
			newLow = t
		}
	}
	for _, t := range ticks {
		if t >= high*0.9999 && t > newLow {
			newHigh = t
			break
		}
	}
	return newLow, newHigh
}

// ladder returns every step of every decade that touches the range.
func ladder(low, high float64, steps []float64) (rungs []float64) {
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, step := range steps {
			rungs = append(rungs, step*math.Pow(10, e))
		}
	}
	return rungs
}

func decimalTicks(label func(float64) string, steps []float64) plot.TickerFunc {
	return func(low, high float64) (ticks []plot.Tick) {
		for _, v := range ladder(low, high, steps) {
			if v >= low*0.9999 && v <= high*1.0001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: label(v)})
			}
		}
		return ticks
	}
}

func binaryTicks(label func(float64) string) plot.TickerFunc {
	return func(low, high float64) (ticks []plot.Tick) {
		for v := low; v <= high*1.0001; v *= 2 {
			ticks = append(ticks, plot.Tick{Value: v, Label: label(v)})
		}
		return ticks
	}
}

func plain(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

func thousands(v float64) string { return scaled(v, 1000, "", "k", "M") }

func bytesOf(v float64) string { return scaled(v, 1000, " B", " kB", " MB", " GB") }

func duration(seconds float64) string {
	return scaled(seconds*1e6, 1000, " µs", " ms", " s")
}

// scaled writes a number with the largest unit that leaves at least 1 before the point.
func scaled(v, by float64, units ...string) string {
	i := 0
	for ; i < len(units)-1 && v >= by*0.9999; i++ {
		v /= by
	}
	return plain(math.Round(v*1000)/1000) + units[i]
}
